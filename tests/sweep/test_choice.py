"""Held-out loss alone chooses."""

from __future__ import annotations

from fasttune.sweep import choice
from fasttune.sweep.study import Outcome, State, TrialRecord
from fasttune.sweep.vary import Range, Values

RATES = Values("train.learning_rate", ("1e-4", "2e-4", "4e-4"))


def trial(
    number: int, loss: float | None, value: str = "2e-4", state: State = "finished", run: str = ""
) -> TrialRecord:
    run = run or f"cat/{number:03d}-fresh"
    return TrialRecord(number, state, {RATES.key: value}, run, loss, None if loss is None else 2.0)


def codes(*trials: TrialRecord) -> list[str]:
    return [finding.code for finding in choice.findings(trials, [RATES])]


def test_the_lowest_held_out_loss_is_chosen_of_equal_ones_the_earlier() -> None:
    trials = [trial(1, 3.0), trial(2, 2.5), trial(3, 2.5), trial(4, None, state="pruned"), trial(5, float("nan"))]
    assert [one.number for one in choice.ranked(trials)] == [2, 3, 1]
    assert [one.number for one in choice.finalists(trials)] == [2, 3]


def test_a_run_that_two_trials_share_is_shown_once() -> None:
    trials = [trial(1, 2.5, run="cat/001-fresh"), trial(2, 3.0), trial(3, 2.5, run="cat/001-fresh")]
    assert [one.number for one in choice.finalists(trials)] == [1, 2]


def test_nothing_finished_is_an_error() -> None:
    assert choice.best([trial(1, None, state="failed")]) is None
    assert codes(trial(1, None, state="failed")) == ["no-trial-finished"]


def test_what_is_as_good_is_named() -> None:
    """1 % is what separates two runs (judgement.RISE)."""
    assert codes(trial(1, 2.0, "1e-4"), trial(2, 1.0), trial(3, 1.0099, "4e-4")) == ["as-good"]
    assert codes(trial(1, 2.0, "1e-4"), trial(2, 1.0), trial(3, 1.0101, "4e-4")) == []


def test_a_best_value_at_an_end_is_said() -> None:
    low, middle, high = trial(1, 3.0, "1e-4"), trial(2, 2.0), trial(3, 1.0, "4e-4")
    assert codes(low, middle, high) == ["best-at-the-end"]
    assert codes(low, trial(2, 0.5), high) == []
    ends = Range(RATES.key, 1e-5, 1e-3, is_whole=False)
    assert choice.findings([low, middle, high], [ends]) == []  # within the range that TPE may choose from
    texts = Values("train.optim", ("sgd", "adamw_torch"))
    assert choice.findings([low, middle, high], [texts]) == []


def test_the_line_of_a_trial() -> None:
    assert choice.in_words(Outcome(2.34567, 1.5)) == "held-out loss 2.346 after epoch 1.5"
    assert choice.in_words(Outcome(None, None)).startswith("stopped")
    assert choice.in_words(Outcome(None, None, "training diverged")) == "failed: training diverged"
