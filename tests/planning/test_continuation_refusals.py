"""What a continuation or a resumed run refuses: settings and data that its start is bound to, and totals that train
nothing or too much. All of it before torch is loaded, from the documents of the earlier run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from series import PAIRS, RECIPE, Series, contents, write_samples
from written_runs import planned, refusal, request, typed, write_parent, write_run

from fasttune.planning.resume import run_to_resume
from fasttune.runs.store import Run

CHANGES = {
    "train.batch_size": "2", "lora.r": "4", "lora.dropout": "0.5", "train.learning_rate": "1e-3",
    "train.lr_scheduler_type": "cosine", "train.warmup_steps": "2", "train.seed": "1", "train.optim": "sgd",
    "train.weight_decay": "0.1", "data.learn": "all", "data.system": "Another.", "model.max_seq_length": "512",
}  # fmt: skip


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 2 epochs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_parent(tmp_path)


@pytest.mark.parametrize("key", CHANGES)
def test_incremental_refuses_what_its_checkpoint_is_bound_to(parent: Run, tmp_path: Path, key: str) -> None:
    before = contents(tmp_path)
    findings = refusal("continue.add_epochs=1", f"{key}={CHANGES[key]}", strategy="incremental")
    (finding,) = (one for one in findings if one.where == f"persona.toml: {key}")
    assert finding.code == "continue-differs" and "the parent had" in finding.what
    assert "incremental" in finding.why and "checkpoint of persona/001-fresh" in finding.why
    assert typed(finding.fix)[-1].strategy == "retune"
    assert contents(tmp_path) == before


def test_every_difference_is_named_at_once(parent: Run, tmp_path: Path) -> None:
    write_samples(tmp_path / "train.jsonl", PAIRS[:9])
    changes = ("train.batch_size=2", "lora.r=4", "model.base=./other", "train.learning_rate=1e-3")
    findings = refusal("continue.add_epochs=1", *changes, strategy="incremental")
    assert {"model.base", "lora.r", "train.batch_size", "train.learning_rate", "samples"} <= {
        one.where.removeprefix("persona.toml: ") for one in findings if one.code == "continue-differs"
    }


def test_an_adapter_is_bound_to_its_shape_and_its_base(parent: Run) -> None:
    start = ("continue.start=adapter", "train.epochs=0.5")
    assert planned(*start, "train.learning_rate=1e-9", strategy="retune").start.kind == "adapter"
    for changed in ("lora.r=4", 'lora.target_modules=["q_proj"]', "lora.alpha=4", "model.base=./other"):
        findings = refusal(*start, changed, strategy="retune")
        assert (findings[0].code, findings[0].where) == ("continue-differs", f"persona.toml: {changed.split('=')[0]}")
    assert planned("lora.r=4", "train.epochs=0.5", strategy="retune").start.kind == "base"


def test_retune_never_takes_the_old_optimizer(parent: Run) -> None:
    findings = refusal("continue.start=checkpoint", "train.learning_rate=1e-3", strategy="retune")
    assert "retune-from-checkpoint" in [one.code for one in findings]


def test_custom_takes_no_other_data_from_a_checkpoint(parent: Run, tmp_path: Path) -> None:
    write_samples(tmp_path / "train.jsonl", PAIRS[:9])
    (finding,) = refusal("continue.add_epochs=1", strategy="custom")
    assert (finding.code, finding.where) == ("continue-differs", "persona.toml: samples")
    plan = planned("continue.add_epochs=1", "continue.start=adapter", strategy="custom")
    assert (plan.start.kind, plan.start.epochs, plan.total_steps) == ("adapter", 0.0, 3), (
        "other data: epochs count anew"
    )


TOO_LONG, NOTHING = "too-many-epochs", "nothing-to-train"


@pytest.mark.parametrize(
    ("options", "settings", "code", "key", "words"),
    [
        ({"strategy": "incremental"}, (), "add-epochs-missing", "continue.add_epochs", "the parent's 2.0"),
        ({"strategy": "incremental"}, ("train.epochs=2",), NOTHING, "train.epochs", "has trained 6 steps already, this run would end at 6"),
        ({"strategy": "incremental"}, ("train.max_steps=6",), NOTHING, "train.max_steps", "has trained 6 steps already"),
        ({"strategy": "custom"}, (), NOTHING, "train.epochs", "has trained 6 steps already"),
        ({"strategy": "augment"}, ("train.epochs=1.5",), NOTHING, "train.epochs", "has trained 6 steps already, this run would end at 5"),
        ({"strategy": "incremental"}, ("continue.add_epochs=8.5",), TOO_LONG, "train.epochs", "10.7 epochs in total; more than 10"),
        ({"strategy": "custom"}, ("continue.start=adapter", "train.epochs=9"), TOO_LONG, "train.epochs", "11.0 epochs in total"),
        ({"strategy": "retune"}, ("train.epochs=11",), TOO_LONG, "train.epochs", "11.0 epochs in total"),
        ({"on_existing": "new"}, ("train.epochs=11",), TOO_LONG, "train.epochs", "11.0 epochs in total"),
    ],
)  # fmt: skip
def test_a_total_that_can_not_be(
    parent: Run, tmp_path: Path, options: dict[str, Any], settings: tuple[str, ...], code: str, key: str, words: str
) -> None:
    before = contents(tmp_path)
    (finding,) = refusal(*settings, **options)
    assert (finding.code, finding.where) == (code, f"persona.toml: {key}")
    assert words in finding.what and finding.fix
    assert contents(tmp_path) == before


def test_more_than_ten_epochs_where_that_is_meant(parent: Run) -> None:
    assert planned("train.epochs=11", on_existing="new", allow_overfit=True).total_steps == 33


@pytest.mark.parametrize("named", ["persona/007", "nobody/001", "persona"])
def test_overwriting_something_else_deletes_nothing(parent: Run, tmp_path: Path, named: str) -> None:
    before = contents(tmp_path)
    (finding,) = refusal("train.max_steps=1", overwrite=named)
    assert finding.code == ("not-a-run-id" if named == "persona" else "unknown-run") and named in finding.what
    assert contents(tmp_path) == before


def test_an_unknown_parent(parent: Run) -> None:
    (finding,) = refusal("continue.parent=nobody", strategy="retune")
    assert finding.code == "unknown-run" and "no run called nobody" in finding.what
    assert "series there: persona" in finding.fix


# A run that was stopped ---------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 6 steps, stopped after 2, in the working directory."""
    monkeypatch.chdir(Series.new(tmp_path).folder)
    return write_run(request("train.max_steps=6"), "stopped", steps=2)


@pytest.mark.parametrize("key", [*CHANGES, "train.max_steps", "model.base"])
def test_a_resumed_run_must_be_the_one_that_was_stopped(stopped: Run, key: str) -> None:
    value = {"train.max_steps": "9", "model.base": "./other"}.get(key) or CHANGES[key]
    findings = refusal("train.max_steps=6", f"{key}={value}")
    (finding,) = (one for one in findings if one.where == f"persona/001-fresh: {key}")
    assert finding.code == "resume-differs" and "the stopped run began with" in finding.what
    assert "--continue retune" in finding.fix and "--continue custom" in finding.fix
    resume = "`fasttune run runs/persona/001-fresh/recipe.toml --on-existing resume --set train.max_steps=6`"
    assert finding.fix.startswith(resume)


def test_a_resumed_run_must_have_the_same_samples(stopped: Run, tmp_path: Path) -> None:
    write_samples(tmp_path / "train.jsonl", PAIRS[:9])
    (finding,) = refusal("train.max_steps=6")
    assert (finding.code, finding.where) == ("resume-differs", "persona/001-fresh: samples")
    write_samples(tmp_path / "train.jsonl", PAIRS[:10])
    assert run_to_resume(Path("runs"), planned("train.max_steps=6"), None) == stopped


@pytest.mark.parametrize(
    "change", ["train.save_steps=5", "train.logging_steps=2", "train.save_total_limit=1", "export.gguf=['f16']",
               "probe.max_new_tokens=7", "data.train=moved.jsonl"]
)  # fmt: skip
def test_what_a_resumed_run_may_change(stopped: Run, tmp_path: Path, change: str) -> None:
    """None of it reaches the weights; data that only moved is the same data."""
    (tmp_path / "moved.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    assert run_to_resume(Path("runs"), planned("train.max_steps=6", change), None) == stopped


def test_a_setting_that_did_not_exist_then_had_its_default(stopped: Run) -> None:
    """A run of an earlier version resumes: what its plan.json does not know changes nothing."""
    document = json.loads(stopped.plan.read_text(encoding="utf-8"))
    document["settings"] = [one for one in document["settings"] if one["key"] != "train.shared_prefix"]
    stopped.plan.write_text(json.dumps(document), encoding="utf-8")
    assert run_to_resume(Path("runs"), planned("train.max_steps=6"), None) == stopped
    findings = refusal("train.max_steps=6", "train.shared_prefix=false")
    assert [one.where for one in findings] == ["persona/001-fresh: train.shared_prefix"]


def test_the_recipe_beside_it_does_not_matter(stopped: Run, tmp_path: Path) -> None:
    """Comments and order of the recipe may change: its values are compared, not its text."""
    (tmp_path / "persona.toml").write_text("# a remark\n" + RECIPE, encoding="utf-8")
    assert run_to_resume(Path("runs"), planned("train.max_steps=6"), None) == stopped
