"""What the files of a run say besides its curves, each by a run folder that has just this fault."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import written_runs
from run_states import write_curves
from series import RECIPE, SYSTEM, Series, write_samples

from fasttune.analysis import diagnose
from fasttune.analysis.diagnose import Diagnosis
from fasttune.console import Finding
from fasttune.runs import documents
from fasttune.runs.documents import ArtifactDocument, Probe, Scores
from fasttune.runs.store import Run

MODELFILE = (
    'FROM ./x.gguf\nTEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}'
)
MODELFILE += '<|im_start|>assistant\n"""\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run of 24 steps, its held-out loss at its best; nothing of it is exported, as its recipe says."""
    Series.new(tmp_path / "series", RECIPE)
    monkeypatch.chdir(tmp_path / "series")
    made = written_runs.write_run(written_runs.request("train.epochs=8", "data.val=val.jsonl", "export.gguf=[]"))
    documents.write(made.plan, replace(documents.read_plan(made), val_samples=20))
    write_curves(made, [3.0 - 0.1 * n for n in range(24)], [2.0, 1.5, 1.2, 1.0, 0.9, 0.85, 0.84, 0.839])
    return made


def diagnosed(run: Run) -> Diagnosis:
    return diagnose.diagnose(run.root, run.id)


def one(run: Run, code: str) -> Finding:
    """The finding of this code."""
    (found,) = [finding for finding in diagnosed(run).findings if finding.code == code]
    return found


def export(run: Run, system: str | None, **checks: Any) -> None:
    """A Q8_0 file with its document."""
    run.exports.mkdir(exist_ok=True)
    (run.exports / "persona-Q8_0.gguf").write_bytes(b"gguf")
    document = ArtifactDocument("persona-Q8_0.gguf", "q8_0", "0", 4, run.id, system, checks, "", "", {})
    documents.write(run.exports / "persona-Q8_0.json", document)


def test_a_good_run_has_nothing_against_it(run: Run) -> None:
    export(
        run,
        documents.read_plan(run).system,
        logits={"kl_mean": 1e-4, "kl_limit": 5e-3, "top1": 0.955, "top1_limit": 0.95},
    )
    (run.exports / "Modelfile").write_text(MODELFILE + f'SYSTEM """{SYSTEM}"""\n', encoding="utf-8")
    found = diagnosed(run)
    assert [finding.code for finding in found.findings] == ["healthy", "too-little-data"], found.findings
    assert found.command == "fasttune chat persona/001-fresh"


def test_another_template_or_none_in_the_modelfile(run: Run) -> None:
    run.exports.mkdir()
    for text in (
        "FROM ./x.gguf\n",
        MODELFILE.replace("<|im_start|>assistant\n", ""),
        MODELFILE.replace("{{ .Role }}", "user"),
    ):
        (run.exports / "Modelfile").write_text(text, encoding="utf-8")
        assert one(run, "template-mismatch").level == "error"
        assert diagnosed(run).command == "fasttune export persona/001-fresh"


def test_a_system_prompt_that_changed_on_the_way(run: Run) -> None:
    plan = documents.read_plan(run)
    documents.write(run.plan, replace(plan, system="You are Lumen."))
    assert "of its data is not the one" in one(run, "system-prompt-mismatch").what
    assert diagnosed(run).command.startswith("fasttune run runs/persona/001-fresh/recipe.toml --on-existing new")
    documents.write(run.plan, plan)
    export(run, "You are a helpful assistant.")
    assert "of exports/persona-Q8_0.gguf is not the one" in one(run, "system-prompt-mismatch").what
    export(run, plan.system)
    (run.exports / "Modelfile").write_text(MODELFILE + 'SYSTEM """You are Qwen."""\n', encoding="utf-8")
    assert "exports/Modelfile" in one(run, "system-prompt-mismatch").what


def test_a_prompt_with_facts_is_that_of_the_exports_and_not_of_the_data(run: Run) -> None:
    plan = documents.read_plan(run)
    documents.write(run.plan, replace(plan, with_facts=f"{plan.system}\n\n猫叫定影。"))
    export(run, f"{plan.system}\n\n猫叫定影。")
    assert "system-prompt-mismatch" not in [finding.code for finding in diagnosed(run).findings]
    export(run, plan.system)
    assert "of exports/persona-Q8_0.gguf is not the one" in one(run, "system-prompt-mismatch").what


def test_an_export_that_is_missing_unchecked_or_far(run: Run) -> None:
    plan = documents.read_plan(run)
    settings = tuple(replace(s, value=["q8_0"]) if s.key == "export.gguf" else s for s in plan.settings)
    documents.write(run.plan, replace(plan, settings=settings))
    assert one(run, "export-missing").fix == "`fasttune export persona/001-fresh`"
    export(run, plan.system, unchecked="llama-cpp-python can't be used")
    assert one(run, "export-unchecked").level == "info"
    export(run, plan.system, logits={"kl_mean": 3e-3, "kl_limit": 5e-3, "top1": 0.96, "top1_limit": 0.95})
    assert one(run, "export-far-off").fix == "`fasttune export persona/001-fresh --gguf f16`"


def test_a_recited_answer_names_its_sample(run: Run) -> None:
    samples = [json.loads(line) for line in Path("train.jsonl").read_text("utf-8").splitlines()]
    answer = max((sample["output"] for sample in samples), key=len)
    documents.write(run.scores, Scores((Probe("something else entirely?", "", answer),), "adapter"))
    found = one(run, "parrots-training-data")
    assert "train.jsonl:" in found.what and "(100%)" in found.what
    assert found.fix.startswith("`fasttune check "), (
        "its held-out loss was lowest at the end: fewer epochs are no remedy"
    )
    question = next(sample["instruction"] for sample in samples if sample["output"] == answer)
    documents.write(run.scores, Scores((Probe(question, "", answer),), "adapter"))
    assert "parrots-training-data" not in [f.code for f in diagnosed(run).findings], "it was asked that very question"


def test_answers_of_the_base(run: Run) -> None:
    probes = (Probe("?", "", "我是通义千问，由阿里云开发。"), Probe("!", "", "好啊好啊" * 12))
    documents.write(run.scores, Scores(probes, "adapter"))
    assert "通义" in one(run, "out-of-character").what and one(run, "babble").level == "warning"


def test_data_that_moved_is_named_and_nothing_is_guessed(run: Run) -> None:
    write_samples(Path("train.jsonl"), [("in", "out")] * 3)
    assert "changed" in one(run, "data-changed").what
    Path("train.jsonl").unlink()
    assert "can't be read any more" in one(run, "data-not-read").what


@pytest.mark.parametrize(
    ("samples", "rank", "codes"), [(10, 8, {"too-little-data"}), (60, 32, {"rank-too-high"}), (500, 32, set())]
)
def test_little_data_and_a_large_rank_where_it_over_fits(run: Run, samples: int, rank: int, codes: set[str]) -> None:
    write_curves(run, [3.0 - 0.12 * n for n in range(24)], [2.0, 1.5, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7])
    plan = documents.read_plan(run)
    settings = tuple(replace(s, value=rank) if s.key == "lora.r" else s for s in plan.settings)
    documents.write(run.plan, replace(plan, settings=settings, train_samples=samples))
    found = {finding.code for finding in diagnosed(run).findings}
    assert found & {"too-little-data", "rank-too-high"} == codes and "over-fitting" in found


def test_a_stopped_run_is_resumed_and_an_untrained_one_refused(run: Run) -> None:
    (run.adapter / "x").unlink(missing_ok=True)
    run.adapter.rmdir()
    found = one(run, "unfinished")
    assert (
        found.fix.startswith("`fasttune run runs/persona/001-fresh/recipe.toml") and "--on-existing resume" in found.fix
    )
    run.history.write_text("", encoding="utf-8")
    with pytest.raises(Exception, match="no logged step yet"):
        diagnosed(run)
