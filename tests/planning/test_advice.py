"""What is advised about a plan: epochs that suit the data, one change at a time, the strategy that fits the parent's
figures, a larger base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from series import RECIPE, Series
from written_runs import advice, write_history, write_parent

from fasttune.console import Finding
from fasttune.files import append_line
from fasttune.planning.advice import fitting_strategies
from fasttune.runs import documents
from fasttune.runs.store import Run


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 2 epochs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_parent(tmp_path)


def end_with(parent: Run, loss: float, held_out: Sequence[float] = ()) -> None:
    """Give the parent other figures: its loss fell from 3.0 to `loss` in 2 epochs, the last with these evaluations."""
    write_history(parent, range(1, 4), 3, loss=3.0)
    documents.write(parent.plan, replace(documents.read_plan(parent), val_samples=20))
    first = parent.history.read_text(encoding="utf-8")
    write_history(parent, range(4, 7), 3, loss=loss, held_out=held_out)
    parent.history.write_text(first + parent.history.read_text(encoding="utf-8"), encoding="utf-8")


def by_code(findings: list[Finding], code: str) -> list[Finding]:
    """Those of one code."""
    return [one for one in findings if one.code == code]


def test_one_change_at_a_time(parent: Run) -> None:
    code = "one-change-at-a-time"
    assert not by_code(advice("train.learning_rate=1e-3", strategy="retune"), code)
    three = advice("train.learning_rate=1e-3", "lora.r=16", "train.epochs=5", strategy="retune")
    (finding,) = by_code(three, code)
    assert (finding.level, finding.where) == ("warning", "persona.toml")
    assert "train.epochs, lora.r, train.learning_rate all differ from persona/001-fresh" in finding.what
    assert "first epochs, then the learning rate, then the rank" in finding.fix


def test_epochs_for_the_data(parent: Run) -> None:
    (few,) = by_code(advice("name=new", "train.epochs=2"), "epochs-for-data")
    assert "2.0 epochs over 10 samples; 5 to 8 usually suit so many" in few.what
    assert not by_code(advice("name=new", "train.epochs=6"), "epochs-for-data")
    after = advice("continue.start=adapter", "train.epochs=4", strategy="custom")
    assert not by_code(after, "epochs-for-data"), "the adapter's 2 epochs count"


@pytest.mark.parametrize(
    ("loss", "held_out", "fits", "symptom"),
    [
        (0.2, [2.0, 1.0, 1.2], ["retune"], "the samples, word for word"),
        (2.99, [2.0, 1.0], ["retune"], "those of the base"),
        (0.9, [2.0, 1.5], ["augment", "incremental", "retune"], "too short or shallow"),
        (0.3, [1.5, 1.49], ["augment", "retune"], "out of character at times"),
        (0.3, [0.601, 0.6], ["retune", "augment"], "perhaps not good enough"),
        (2.5, [2.601, 2.6], ["retune", "augment"], "perhaps not good enough"),  # a high loss alone asks for nothing
        (0.9, [], ["augment", "incremental", "retune"], "for you to judge"),
        (0.01, [], ["retune", "augment", "incremental"], "for you to judge"),
    ],
)
def test_the_strategy_that_fits_the_parents_figures(
    parent: Run, loss: float, held_out: list[float], fits: list[str], symptom: str
) -> None:
    end_with(parent, loss, held_out)
    fit = fitting_strategies(parent)
    assert (list(fit.strategies), fit.symptom) == (fits, symptom)
    settings = {"incremental": ("continue.add_epochs=1",), "retune": ("train.epochs=2",), "augment": ()}
    for chosen, overrides in settings.items():
        findings = advice(*overrides, strategy=chosen)
        other = by_code(findings, "other-strategy-fits")
        if chosen in fits:
            assert not other
        elif symptom == "the samples, word for word":
            (rising,) = by_code(findings, "held-out-loss-rising")
            assert "its held-out loss rose from 1.000 to 1.200 before it ended" in rising.what
            assert "add data, or retune with fewer epochs or a lower learning rate" in rising.fix
        else:
            assert f"{' / '.join(fits)} fits better than {chosen} where its answers are {symptom}" in other[0].what
            assert other[0].fix.startswith(f"`fasttune run persona.toml --continue {fits[0]}")
    assert not by_code(advice("continue.add_epochs=1", strategy="custom"), "other-strategy-fits")


@pytest.mark.parametrize(
    ("held_out", "why"),
    [(0, "without held-out samples"), (1, "one held-out sample can't tell"), (19, "19 held-out samples are too few")],
)
def test_few_held_out_samples_speak_for_and_against_nothing(parent: Run, held_out: int, why: str) -> None:
    end_with(parent, 0.2, [2.0, 1.0])
    documents.write(parent.plan, replace(documents.read_plan(parent), val_samples=held_out))
    fit = fitting_strategies(parent)
    assert fit.symptom == "for you to judge" and why in fit.why


def test_a_parent_that_diverged_is_trained_again_with_less(parent: Run) -> None:
    losses = [3.0 - 0.1 * step for step in range(20)] + [9.0] * 10
    parent.history.unlink()
    for step, loss in enumerate(losses, 1):
        line = {"step": step, "epoch": step / 3, "loss": loss, "mean_token_accuracy": 0.1}
        append_line(parent.history, line)
    fit = fitting_strategies(parent)
    assert fit.strategies == ("retune",) and "its loss rose and stayed high" in fit.why


@pytest.mark.parametrize("changed", [{"train_samples": 60}, {"epochs": 7.0}])
def test_with_enough_samples_or_epochs_more_epochs_come_first(parent: Run, changed: dict[str, int | float]) -> None:
    end_with(parent, 0.9, [2.0, 1.5])
    documents.write(parent.plan, replace(documents.read_plan(parent), **changed))  # type: ignore[arg-type]
    assert fitting_strategies(parent).strategies == ("incremental", "augment", "retune")


def test_a_fresh_run_beside_a_finished_one_begins_again(parent: Run) -> None:
    """Its loss starts where the parent's did, at 3.69 every time: not what is meant where it should go on."""
    end_with(parent, 0.512)
    (finding,) = by_code(advice(), "begins-again")
    assert "persona/001-fresh ended at loss 0.512" in finding.what
    assert "--continue incremental" in finding.fix
    assert not by_code(advice("name=new"), "begins-again")


@pytest.mark.parametrize(
    ("base", "system", "answer", "advised"),
    [
        ("builtin:tiny", "你" * 400, "好。", True),
        ("builtin:tiny", "你好。", "好" * 160, True),
        ("builtin:tiny", "你好。", "好。", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "你" * 400, "好。", True),
        ("Qwen/Qwen2.5-1.5B-Instruct", "你" * 400, "好。", False),
        ("./my-model", "你" * 400, "好。", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "You are a cat. " * 60, "Yes.", False),
    ],
)
def test_a_small_base_for_a_complex_persona(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, system: str, answer: str, advised: bool
) -> None:
    monkeypatch.chdir(Series.new(tmp_path, RECIPE.replace("builtin:tiny", base)).folder)
    rows = [{"system": system, "instruction": f"问{n}", "output": answer} for n in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = by_code(advice(), "larger-base")
    assert [("a small base" in one.what, "Qwen/Qwen2.5-1.5B-Instruct" in one.fix) for one in found] == [
        (True, True)
    ] * advised


@pytest.mark.parametrize(("warmup", "told"), [("6", True), ("9", True), ("5", False), ("0.5", False)])
def test_a_warmup_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: str, told: bool) -> None:
    monkeypatch.chdir(Series.new(tmp_path).folder)
    found = by_code(advice("train.max_steps=6", f"train.warmup_steps={warmup}"), "warmup-too-long")
    assert [(one.level, one.where) for one in found] == [("warning", "persona.toml: train.warmup_steps")] * told
    assert not told or "training ends at step 6" in found[0].what


def test_what_facts_in_the_prompt_take_of_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Series.new(tmp_path, RECIPE)
    questions = '["猫叫啥？", "猫咪大名？", "怎么喊猫？"]'
    Path("facts.toml").write_text(
        f'[[fact]]\nid = "cat"\ntext = "{"猫叫定影，" * 40}"\nquestions = {questions}\naccept = ["定影"]\n',
        encoding="utf-8",
    )
    with_facts = ("facts.file=facts.toml", "export.prompt=facts")
    assert by_code(advice("facts.file=facts.toml"), "facts-in-prompt") == []
    (note,) = by_code(advice(*with_facts), "facts-in-prompt")
    assert (note.level, note.fix) == ("info", "") and "% of the context" in note.what
    (warning,) = by_code(advice(*with_facts, "export.num_ctx=512"), "facts-in-prompt")
    assert warning.level == "warning" and "export.num_ctx = 512" in warning.fix
    (trained,) = by_code(advice("data.system_facts=facts.toml"), "facts-in-prompt")
    assert (trained.where, trained.what) == ("persona.toml: data.system_facts", note.what)
