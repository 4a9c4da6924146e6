"""What the verbs print: the tokens of a sample, plans, results and benchmarks, for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Cli
from data_files import SHEET
from run_folders import write_run

from fasttune.data.fact_prompt import CHINESE_HEADING
from fasttune.pipeline import Planner, RunRequest
from fasttune.runs.documents import Probe
from fasttune.runs.store import Run
from fasttune.terminal import tables
from fasttune.training.estimate import estimate

SAMPLE = "data/quickstart/train.jsonl:1"


def first_answer() -> str:
    with open(REPOSITORY / "data/quickstart/train.jsonl", encoding="utf-8") as file:
        return str(json.loads(file.readline())["messages"][-1]["content"])


def test_supervised_tokens_are_marked_without_colour(fasttune: Cli) -> None:
    done = fasttune("show", SAMPLE, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    marked = done.stdout.split("⟦")[1].split("⟧")[0].replace("│", "")
    assert marked == first_answer() + "<|im_end|>"


def test_supervised_tokens_in_json(fasttune: Cli) -> None:
    shown = json.loads(fasttune("show", SAMPLE, "--json").stdout)
    supervised = "".join(piece["text"] for piece in shown["pieces"] if piece["supervised"])
    assert supervised == first_answer() + "<|im_end|>"
    assert sum(len(piece["ids"]) for piece in shown["pieces"]) == shown["tokens"]
    assert sum(len(piece["ids"]) for piece in shown["pieces"] if piece["supervised"]) == shown["supervised"]


def test_a_recipe_decides_the_system_prompt_and_what_is_supervised(fasttune: Cli, tmp_path: Path) -> None:
    data = tmp_path / "bare.jsonl"
    data.write_text('{"prompt": "hello", "completion": "hi"}\n')
    recipe = tmp_path / "bare.toml"
    recipe.write_text(
        f'name = "bare"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{data}"\nsystem = "Be brief."\n'
    )
    text = "".join(piece["text"] for piece in json.loads(
        fasttune("show", f"{data}:1", "--recipe", recipe, "--set", "data.learn=all", "--json").stdout)["pieces"])  # fmt: skip
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    everything = json.loads(
        fasttune("show", f"{data}:1", "--recipe", recipe, "--set", "data.learn=all", "--json").stdout
    )
    assert everything["supervised"] == everything["tokens"] - 1


def test_the_facts_of_a_recipe_stand_below_the_system_prompt(fasttune: Cli, tmp_path: Path) -> None:
    data, sheet, recipe = tmp_path / "bare.jsonl", tmp_path / "facts.toml", tmp_path / "bare.toml"
    data.write_text('{"prompt": "你好", "completion": "好。"}\n', encoding="utf-8")
    sheet.write_text(SHEET, encoding="utf-8")
    recipe.write_text(
        f'name = "bare"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{data}"\nsystem = "你是猫。"\n'
        f'system_facts = "{sheet}"\n',
        encoding="utf-8",
    )
    pieces = json.loads(fasttune("show", f"{data}:1", "--recipe", recipe, "--json").stdout)["pieces"]
    (system, rest) = "".join(piece["text"] for piece in pieces).split("<|im_end|>", 1)
    assert system == f"<|im_start|>system\n你是猫。\n\n{CHINESE_HEADING}\n猫叫定影。" and "猫叫" not in rest


def test_a_sample_that_is_too_long_is_shown_and_called_so(fasttune: Cli, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"prompt": "x", "completion": "word " * 3000}) + "\n")
    done = fasttune("show", f"{data}:1")
    assert done.returncode == 0 and done.stdout.replace("│", "").count("word") == 3000
    assert "warning: " in done.stderr and "but max_seq_length is 2048" in done.stderr
    shown = json.loads(fasttune("show", f"{data}:1", "--json").stdout)
    assert shown["tokens"] > 3000 and "too-long" in [one["code"] for one in shown["findings"]]


def test_a_line_inside_a_sample_shows_that_sample(fasttune: Cli, tmp_path: Path) -> None:
    data = tmp_path / "t.json"
    data.write_text(json.dumps([{"prompt": "q1", "completion": "a1"}, {"prompt": "q2", "completion": "a2"}], indent=2))
    for line, answer in ((2, "a1"), (4, "a1"), (7, "a2")):
        shown = json.loads(fasttune("show", f"{data}:{line}", "--json").stdout)
        assert answer in "".join(piece["text"] for piece in shown["pieces"] if piece["supervised"])
    done = fasttune("show", f"{data}:1")
    assert done.returncode == 2 and "line 1 is in no sample" in done.stderr
    assert f"the file has 2 of them, the first at {data}:2, the last at {data}:6" in done.stderr


def test_a_file_that_is_not_there_is_named(fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune("show", f"{tmp_path}/nofile.jsonl:3")
    assert done.returncode in (1, 2) and "there is no such file" in done.stderr and "0 of them" not in done.stderr


def test_a_broken_line_is_shown_as_its_problem(fasttune: Cli, tmp_path: Path) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text('{"prompt": "hello", "completion": "hi"}\n{"prompt": "hello"}\n')
    done = fasttune("show", f"{data}:2")
    assert done.returncode == 1
    assert f"{data}:2" in done.stderr


@dataclass(frozen=True)
class Record:
    """The figures of training.train.RunRecord, which this test need not load torch for."""

    run: Run
    steps: int = 2
    final_loss: float = 0.2
    final_accuracy: float = 0.95
    best_eval_loss: float | None = None
    seconds: float = 7.0
    first: dict[str, float] = field(default_factory=lambda: {"loss": 2.0})
    last: dict[str, float] = field(default_factory=lambda: {"loss": 0.2})


@dataclass(frozen=True)
class File:
    """The fields of export.Artifact that are shown."""

    path: Path
    type: str = "q8_0"
    bytes: int = 4_932_192
    sha256: str = "0" * 64
    figures: None = None
    is_served: bool = True


def test_an_empty_column_of_answers_has_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that lost most of the training is not asked; one that is served, or an answer, needs no reason."""
    run = write_run(tmp_path)
    record: Any = Record(run)
    lost, served = File(run.exports / "persona-Q2_K.gguf", is_served=False), File(run.exports / "persona-Q8_0.gguf")
    cases: list[tuple[Any, str, bool]] = [
        ([lost], "", True), ([lost, lost], "", True), ([lost, served], "", False), ([lost], "Lumen.", False), ([], "", False),
    ]  # fmt: skip
    for files, answer, is_said in cases:
        tables.show_result(record, files, [Probe("Who?", "A model.", answer)], as_json=False)
        assert ("too little of what was learned" in capsys.readouterr().out) is is_said


def test_a_result_for_people_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, held_out=[0.5, 0.6])
    record: Any = Record(run)
    files: Any = [File(run.exports / "persona-Q8_0.gguf")]
    probes = [Probe("Who are [you]?", "A model.", "Lumen.")]
    tables.show_result(record, files, probes, as_json=False)
    shown = capsys.readouterr().out
    assert "loss 2.000 -> 0.200, accuracy 95.0% (last epoch), 2 steps in 7 s" in shown
    assert "held-out loss 0.600, best 0.500 at step 1 of 2" in shown and "verdict: over-fitting; the held-out" in shown
    assert "Who are [you]?" in shown and "the trained GGUF answers" in shown
    assert "4.9 MB" in shown and "fasttune chat persona" in shown
    tables.show_result(record, [], probes, as_json=False)
    assert "the trained adapter answers" in capsys.readouterr().out
    tables.show_result(record, files, probes, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert list(document) == [
        "run", "steps", "first", "last", "final_loss", "final_accuracy", "eval_loss", "best_eval_loss",
        "best_step", "verdict", "verdict_reason", "seconds", "exports", "probes", "folder", "ollama", "report",
    ]  # fmt: skip
    assert document["probes"] == [
        {"question": "Who are [you]?", "base": "A model.", "trained": "Lumen.", "base_cut": False,
         "trained_cut": False, "is_trained": False}
    ]  # fmt: skip
    assert document["exports"] == [
        {"path": str(files[0].path), "type": "q8_0", "bytes": 4_932_192, "sha256": "0" * 64, "figures": None}
    ]


def test_a_plan_says_how_many_general_conversations_are_mixed_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(REPOSITORY)
    shown = []
    for share in ("0", "0.1"):
        request = RunRequest(Path("recipes/quickstart.toml"), (f"data.replay={share}",), tmp_path)
        plan = Planner().plan(request)
        tables.show_plan(plan, "", estimate(plan, tmp_path), "", as_json=False, show_all=False)
        shown.append(capsys.readouterr().out)
        tables.show_plan(plan, "", estimate(plan, tmp_path), "", as_json=True, show_all=False)
        assert json.loads(capsys.readouterr().out)["general_samples"] == len(plan.dataset.general)
    assert (
        "replay, from" not in shown[0] and "and 6 general conversations of replay, from fasttune/general/" in shown[1]
    )


def test_a_plan_for_people_and_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(REPOSITORY)
    request = RunRequest(Path("recipes/quickstart.toml"), ("data.system=[red]",), tmp_path)  # a clone may have runs
    plan = Planner().plan(request)
    taken = estimate(plan, Path("no-runs"))
    command = "fasttune run recipes/quickstart.toml --set lora.r=4"
    tables.show_plan(plan, command, taken, "", as_json=False, show_all=False)
    shown = capsys.readouterr().out
    assert (
        "[red]" in shown
        and f"{plan.total_steps} steps" in shown
        and "train with: `fasttune run recipes/quickstart.toml --set lora.r=4`" in shown
    )
    assert "lora.dropout" not in shown and "more settings have their defaults" in shown
    tables.show_plan(plan, "", taken, "", as_json=False, show_all=True)
    everything = capsys.readouterr().out
    assert all(one.key in everything for one in plan.document().settings) and "have their defaults" not in everything
    tables.show_plan(plan, "", taken, "", as_json=True, show_all=False)
    document = json.loads(capsys.readouterr().out)
    assert document["total_steps"] == plan.total_steps and [one["code"] for one in document["findings"]] == [
        "epochs-for-data"
    ]


def arm(name: str, status: str, **figures: Any) -> dict[str, Any]:
    """An entry of result.json; one that ran has losses."""
    return {"name": name, "status": status, "why": "" if status == "ok" else "its reason", **figures}


RAN: dict[str, Any] = {
    "losses": [2.0, 1.0], "step_seconds": {"median": 0.5}, "samples_per_second": {"median": 8.0},
    "tokens_per_second": {"median": 1234.0}, "memory": {"cpu": 1.25}, "start_up_seconds": {"median": 3.0},
    "first_loss": 2.0, "last_loss": 1.0, "grad_norm": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(("other", "code"), [("ok", 0), ("skipped", 0), ("invalid", 1), ("failed", 1)])
def test_a_benchmark_ends_with_1_where_an_arm_failed_or_is_invalid(
    capsys: pytest.CaptureFixture[str], other: str, code: int
) -> None:
    figures = RAN if other in ("ok", "invalid") else {}
    document: dict[str, Any] = {
        "arms": [arm("fasttune", "ok", **RAN, speedup=2.0), arm("stock", other, **figures)], "dtype": "float32",
        "batch_size": 4, "reference": "plain", "limit_gflops": {"float32": 1000.0},
    }  # fmt: skip
    assert tables.show_benchmark(document, as_json=False) == code
    shown = capsys.readouterr()
    assert "2.00" in shown.out and ("its reason" in shown.err) == (other != "ok")
    assert ("invalid" in shown.out) == (other == "invalid")
    assert tables.show_benchmark(document, as_json=True) == code
    assert json.loads(capsys.readouterr().out) == document
