"""What a refused continuation says of the data and settings that differ, and that its commands do what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from series import PAIRS, write_samples
from written_runs import planned, refusal, request, typed, write_parent, write_run

from fasttune.console import Finding
from fasttune.pipeline import Planner
from fasttune.planning.lengths import lacking_epochs
from fasttune.planning.strategy import Plan
from fasttune.runs.store import Run

BEFORE = PAIRS[:10]
MORE = [*BEFORE, ("新的问题？", "新的回答。"), ("另一个？", "是的。")]


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 2 epochs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_parent(tmp_path)


def plans(fix: str) -> list[Plan]:
    """The plans of the commands in a hint: each is accepted as it is typed."""
    return [Planner().plan(one) for one in typed(fix)]


def of_samples(*overrides: str, strategy: str = "incremental", **options: str) -> Finding:
    findings = refusal("data.val=val.jsonl", *overrides, strategy=strategy, **options)
    (finding,) = (one for one in findings if one.where == "persona.toml: samples")
    assert finding.code == "continue-differs"
    return finding


def test_added_samples_are_counted_and_both_commands_train_on_them(parent: Run, tmp_path: Path) -> None:
    write_samples(tmp_path / "train.jsonl", MORE)
    finding = of_samples("continue.add_epochs=1", "train.save_steps=7", "continue.parent=persona/001-fresh")
    assert finding.what == f"2 samples are new; the {len(BEFORE)} of persona/001-fresh stand before them unchanged"
    further, anew = plans(finding.fix)
    assert (further.recipe.strategy, further.start.kind, further.epochs) == ("custom", "adapter", 1.0)
    assert (anew.recipe.strategy, anew.start.kind) == ("retune", "base")
    for plan in (further, anew):
        assert plan.start.parent == parent and len(plan.dataset.train) == len(MORE)
        assert plan.recipe.train.save_steps == 7 and plan.recipe.continue_.parent == "persona/001-fresh"
        assert plan.recipe.data.val == "val.jsonl"


def test_samples_that_are_not_only_added(parent: Run, tmp_path: Path) -> None:
    write_samples(tmp_path / "train.jsonl", [("changed", "sample"), *MORE[1:]])
    finding = of_samples("continue.add_epochs=1")
    assert finding.what.startswith(f"some of the {len(BEFORE)} samples of persona/001-fresh are changed, moved or gone")
    assert f"{len(MORE)} now" in finding.what
    write_samples(tmp_path / "train.jsonl", BEFORE[:-1])
    assert f"there are {len(BEFORE) - 1} now" in of_samples("continue.add_epochs=1").what


def test_the_same_samples_of_which_others_are_held_out(parent: Run) -> None:
    finding = of_samples("continue.add_epochs=1", "data.val=0.2")
    assert finding.what.startswith("some of the"), "another file was held out, so that it can't be told"
    write_run(request("train.epochs=1", on_existing="new"))
    findings = refusal("continue.add_epochs=1", "data.val=0.2", strategy="incremental")
    assert findings[0].what == (
        'the samples are those of persona/002-fresh, but others are held out: data.val was "", now it is 0.2'
    )
    assert plans(findings[0].fix)[0].recipe.data.val == 0.2


def seen(*overrides: str) -> list[Finding]:
    further = ("continue.start=adapter", "continue.add_epochs=1")
    found = planned(*further, *overrides, strategy="custom").findings
    return [one for one in found if one.code == "held-out-was-trained"]


def test_held_out_samples_that_the_adapter_was_trained_on(parent: Run, tmp_path: Path) -> None:
    write_run(request("data.val=0.2", "train.epochs=1", on_existing="new"))
    assert seen("data.val=0.2") == [], "the same samples are held out"
    trained = {sample.messages for sample in planned("data.val=0.2").dataset.train}
    write_samples(tmp_path / "train.jsonl", MORE)
    held_out = planned("data.val=0.5").dataset.held_out
    both = sum(sample.messages in trained for sample in held_out)
    assert 0 < both < len(held_out)
    (finding,) = seen("data.val=0.5")
    assert finding.what == (
        f"{both} of the {len(held_out)} samples that are held out now were trained on by persona/002-fresh"
    )
    (anew,) = plans(finding.fix)
    assert (anew.recipe.strategy, anew.start.kind) == ("retune", "base")
    assert seen("data.val=val.jsonl") == [], "a file is what it is"
    write_run(request("data.val=0.5", "continue.start=adapter", "continue.add_epochs=1", strategy="custom"))
    (again,) = seen("data.val=0.5")
    assert again.what == finding.what, "they are in the weights of the next run as well"
    write_samples(tmp_path / "train.jsonl", MORE[1:])
    (finding,) = seen("data.val=0.5")
    assert finding.what == "samples that are held out now may be among those that persona/003-custom was trained on"


@pytest.mark.parametrize(
    ("strategy", "settings", "epochs"),
    [
        ("incremental", ("continue.add_epochs=2.5",), 2.5),
        ("incremental", ("train.epochs=3",), 1.0),
        ("incremental", (), 4.5),
        ("augment", (), 4.5),
        ("custom", ("train.max_steps=9",), 4.5),
    ],
)
def test_as_many_epochs_as_were_asked_for(
    parent: Run, tmp_path: Path, strategy: str, settings: tuple[str, ...], epochs: float
) -> None:
    """A total counts the parent's; where nothing is said, what the number of samples lacks after the parent's two."""
    write_samples(tmp_path / "train.jsonl", MORE)
    further = plans(of_samples(*settings, strategy=strategy).fix)[0]
    assert further.recipe.continue_.add_epochs == epochs


def test_at_least_an_epoch_is_lacking() -> None:
    assert [lacking_epochs(30, trained) for trained in (0, 2.0, 2.7, 5.0, 9.0)] == [5.0, 3.0, 2.0, 1.0, 1.0]


def test_a_new_run_beside_a_stopped_one(parent: Run, tmp_path: Path) -> None:
    write_run(request("train.max_steps=4", on_existing="new"), "stopped", steps=2)
    write_samples(tmp_path / "train.jsonl", MORE)
    finding = of_samples("continue.add_epochs=1", on_existing="new")
    assert [one.on_existing for one in typed(finding.fix)] == ["new", "new"]
    assert len(plans(finding.fix)) == 2


def test_other_data_and_another_shape_of_the_adapter_are_mended_at_once(parent: Run, tmp_path: Path) -> None:
    write_samples(tmp_path / "train.jsonl", MORE)
    further = plans(of_samples("continue.add_epochs=1", "lora.r=4", "train.learning_rate=1e-3").fix)[0]
    assert (further.recipe.lora.r, further.recipe.lora.alpha) == (8, 16), "the adapter has that shape"
    assert further.recipe.train.learning_rate == 1e-3, "an adapter is bound to none"


def test_after_a_retune_the_command_takes_the_parents_values(parent: Run) -> None:
    """The recipe still says what was retuned by --set, so that the next continuation contradicts its parent."""
    write_run(request("train.learning_rate=1e-3", "train.epochs=1", "data.val=val.jsonl", strategy="retune"))
    (finding,) = refusal("data.val=val.jsonl", strategy="augment")
    assert finding.where == "persona.toml: train.learning_rate"
    same, anew = plans(finding.fix)
    assert (same.recipe.strategy, same.recipe.train.learning_rate) == ("augment", 1e-3)
    assert same.start.parent and same.start.parent.id == "persona/002-retune"
    assert (anew.recipe.strategy, anew.start.kind) == ("retune", "base")
    assert anew.recipe.train.learning_rate == planned("data.val=val.jsonl").recipe.train.learning_rate


def test_a_setting_that_was_typed_is_typed_once(parent: Run) -> None:
    findings = refusal("data.val=val.jsonl", "continue.add_epochs=1", "train.batch_size=2", strategy="incremental")
    same = typed(findings[0].fix)[0]
    assert sorted(same.overrides) == ["continue.add_epochs=1.0", 'data.val="val.jsonl"', "train.batch_size=4"]


@pytest.mark.parametrize("strategy", ["incremental", "custom"])
def test_a_length_that_trains_nothing_comes_with_one_that_does(parent: Run, strategy: str) -> None:
    settings = ("data.val=val.jsonl",) if strategy == "incremental" else ("data.val=val.jsonl", "train.max_steps=6")
    (finding,) = refusal(*settings, strategy=strategy)
    assert finding.code == ("add-epochs-missing" if strategy == "incremental" else "nothing-to-train")
    (plan,) = plans(finding.fix)
    assert plan.recipe.strategy == strategy and plan.epochs - 2 == pytest.approx(1.5, abs=0.34)
