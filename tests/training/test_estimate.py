"""What a plan is said to take: tokens as training lays them out, memory against what is free, time from earlier runs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Cli
from written_runs import write_run

from fasttune import machine
from fasttune.machine import Machine
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning.strategy import Plan
from fasttune.terminal.estimates import estimate_lines
from fasttune.training import estimate as estimates
from fasttune.training import hub
from fasttune.training.estimate import Estimate, estimate, smaller_base
from fasttune.training.memory import GIB
from fasttune.training.step_dataset import StepDataset
from fasttune.training.train import tokenize

LINZHI = Path("recipes/linzhi.toml")


@pytest.fixture(autouse=True)
def much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository, on a machine without a GPU and with 64 GiB free."""
    monkeypatch.chdir(REPOSITORY)
    set_free(monkeypatch, ram=64.0)


def set_free(monkeypatch: pytest.MonkeyPatch, *, ram: float, gpu: float | None = None) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: Machine(gpu, ram))
    monkeypatch.setattr(machine, "torch_cuda", lambda: "13.0" if gpu else "")


@functools.cache
def planned(*overrides: str, recipe: Path = LINZHI) -> Plan:
    return Planner().plan(RunRequest(recipe, overrides))


def estimated(*overrides: str, runs: Path = Path("no-runs")) -> Estimate:
    return estimate(planned(*overrides), runs)


def test_tokens_and_rows_are_those_that_training_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = planned("model.base=builtin:tiny")
    found = estimate(plan, tmp_path)
    data = tokenize(plan, hub.TINY)
    steps = StepDataset(data.training, plan)
    laid_out = [steps.plan(steps[index], 65536) for index in range(len(steps))]
    assert found.exact and found.tokens == sum(len(example.tokens) for example in data.training)
    assert found.computed_tokens == sum(step.computed_tokens for step in laid_out)
    assert found.longest == max(row.tokens for step in laid_out for row in step.rows)
    assert found.steps == plan.total_steps


@pytest.mark.parametrize("override", ["train.shared_prefix=false", "lora.dropout=0.1"])
def test_without_sharing_all_tokens_are_computed(override: str) -> None:
    found = estimated("model.base=builtin:tiny", override)
    assert found.computed_tokens == found.tokens


def test_a_base_that_is_not_here_is_known_by_its_name() -> None:
    found = estimated("model.base=Qwen/Qwen2.5-1.5B-Instruct")
    assert not found.exact and found.memory is not None and found.fits
    assert found.memory.weights == 4 * 1_543_714_304
    assert 0.85 < found.tokens / 146_430 < 1.15  # what Qwen2.5's own tokenizer counts
    assert found.computed_tokens < 0.5 * found.tokens  # the shared prompt is found in the estimate too
    unknown = estimated("model.base=somebody/some-model")
    assert unknown.memory is None and unknown.fits is None and unknown.change == ()


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "download: Qwen/Qwen2.5-1.5B-Instruct is not on this machine yet, about 3.1 GB"),
        ("owner/name", "download: owner/name is not on this machine yet; its size is unknown"),
        ("builtin:tiny", ""),
    ],
)
def test_a_base_that_has_to_be_downloaded_is_named(
    base: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = estimated(f"model.base={base}")
    assert [line for line in estimate_lines(found) if line.startswith("download")] == [said][: bool(said)]
    assert (found.document()["download"] or {}).get("base", "") == (base if said else "")


def test_of_many_samples_some_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimated("model.base=builtin:tiny")
    monkeypatch.setattr(estimates, "MOST_SAMPLES", 100)
    some = estimated("model.base=builtin:tiny")
    assert whole.exact and not some.exact and some.counted == 98 and some.samples == whole.samples == 486
    assert some.tokens == pytest.approx(whole.tokens, rel=0.05)


def test_rows_get_shorter_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimated()
    set_free(monkeypatch, ram=6.0)
    cut = estimated()
    assert whole.memory and cut.memory and not whole.checkpointing
    assert (cut.longest < whole.longest or cut.checkpointing) and cut.memory.total <= 6.0 * GIB and cut.fits


@pytest.mark.parametrize(
    ("ram", "gpu", "base", "change"),
    [
        (2.0, None, "Qwen/Qwen2.5-0.5B-Instruct", ()),
        (5.0, None, "Qwen/Qwen2.5-1.5B-Instruct", ("model.base=Qwen/Qwen2.5-0.5B-Instruct",)),
        (64.0, 3.6, "Qwen/Qwen2.5-1.5B-Instruct", ("model.load_in_4bit=true",)),
        (64.0, 3.2, "Qwen/Qwen2.5-3B-Instruct", ("model.base=Qwen/Qwen2.5-1.5B-Instruct", "model.load_in_4bit=true")),
        (64.0, 2.1, "Qwen/Qwen2.5-1.5B", ("model.base=Qwen/Qwen2.5-0.5B", "model.load_in_4bit=true")),
        (64.0, 12.0, "Qwen/Qwen2.5-3B-Instruct", None),
    ],
)
def test_what_does_not_fit_and_what_would(
    monkeypatch: pytest.MonkeyPatch, ram: float, gpu: float | None, base: str, change: tuple[str, ...] | None
) -> None:
    set_free(monkeypatch, ram=ram, gpu=gpu)
    found = estimated(f"model.base={base}")
    assert found.device == ("cuda" if gpu else "cpu")
    assert found.fits is (change is None) and found.change == (change or ())
    if change:
        assert estimated(f"model.base={base}", *change).fits


@pytest.mark.parametrize(
    ("name", "smaller"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-0.5B"),
        ("Qwen/Qwen2.5-0.5B", ""),
        ("me/model-3b", ""),
        ("./Qwen2.5-3B", ""),
    ],
)
def test_the_next_smaller_base(name: str, smaller: str) -> None:
    assert smaller_base(name) == smaller


def write_history(folder: Path, seconds: float, tokens: int) -> None:
    lines = [
        {"step": step, "loss": 1.0, "epoch": 0.1, "mean_token_accuracy": 0.5, "step_seconds": seconds * (9 if step == 1 else 1),
         "computed_tokens": tokens}
        for step in range(1, 6)
    ]  # fmt: skip
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_time_is_that_of_the_newest_run_of_the_same_base(tmp_path: Path) -> None:
    """2 s for 1,000 computed tokens; the first step, which also compiles, does not count."""
    overrides = ("model.base=builtin:tiny", "data.val=")
    assert estimated(*overrides, runs=tmp_path).seconds is None
    run = write_run(RunRequest(LINZHI, overrides, tmp_path))
    provenance = json.loads(run.provenance.read_text())
    run.provenance.write_text(json.dumps(provenance | {"device": {"kind": "cpu"}}))
    write_history(run.folder, 2.0, 1000)
    found = estimated(*overrides, runs=tmp_path)
    plan = planned(*overrides)
    computed = found.computed_tokens * plan.total_steps / plan.steps_per_epoch
    starts = provenance.get("starts") or []
    loading = sum(starts[0]["seconds"].values()) if starts else 0.0
    assert found.seconds == pytest.approx(loading + computed * 0.002) and found.seconds_from == run.id
    other = estimated(*overrides, "model.dtype=bfloat16", runs=tmp_path)
    assert other.seconds is None


def test_a_damaged_run_tells_no_time(tmp_path: Path) -> None:
    overrides = ("model.base=builtin:tiny", "data.val=")
    run = write_run(RunRequest(LINZHI, overrides, tmp_path))
    run.provenance.write_text("{")
    assert estimated(*overrides, runs=tmp_path).seconds is None


def test_the_tokenizer_of_training_is_not_needed() -> None:
    code = (
        "from pathlib import Path\nfrom fasttune.pipeline import Planner, RunRequest\n"
        "from fasttune.training.estimate import estimate\nimport sys\n"
        "estimate(Planner().plan(RunRequest(Path('recipes/quickstart.toml'))), Path('no-runs'))\n"
        "print(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == ""


def test_a_sample_that_no_template_takes_is_estimated(tmp_path: Path) -> None:
    """What is wrong with it, `fasttune run` says; the plan still shows something."""
    damaged = tmp_path / "base"
    damaged.mkdir()
    for path in hub.TINY.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert not estimated(f"model.base={damaged}").exact


def test_the_plan_shows_it(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = fasttune("plan", "recipes/quickstart.toml").stdout
    assert "tokens an epoch" in shown and "GiB RAM that are free (weights " in shown and "time: unknown" in shown
    set_free(monkeypatch, ram=1.0, gpu=2.2)
    done = fasttune("plan", "recipes/linzhi.toml", "--set", "model.base=Qwen/Qwen2.5-1.5B-Instruct", "--json")
    document = json.loads(done.stdout)
    (finding,) = [one for one in document["findings"] if one["code"] == "memory-too-small"]
    assert "--set model.base=Qwen/Qwen2.5-1.5B-Instruct --set model." in finding["fix"] and done.returncode == 0
    assert document["estimate"]["fits"] is False and document["estimate"]["memory"]["total"] > 0


def test_helpers_are_those_of_training() -> None:
    """The examples that are estimated from characters have supervised tokens, and no span at 0."""
    samples = planned("model.base=builtin:tiny").dataset.train
    for sample in samples[:50]:
        example = estimates.estimated_example(sample)
        assert example.supervised and all(0 < start < end <= len(example.tokens) for start, end in example.supervised)
