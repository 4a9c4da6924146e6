"""The verdict on a training, and the thresholds it follows from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fasttune.runs import judgement
from fasttune.runs.curves import Curve, curve_of
from fasttune.runs.history import EpochMeans
from fasttune.runs.judgement import Judgement


def history(losses: Sequence[float], held_out: Sequence[float], per_epoch: int = 1) -> list[dict[str, Any]]:
    """A line a step, and an evaluation at the end of each epoch."""
    lines: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        lines.append({"step": step, "loss": loss, "mean_token_accuracy": 0.9})
        if step % per_epoch == 0:
            lines += [
                {"step": step, "eval_loss": value} for value in held_out[step // per_epoch - 1 : step // per_epoch]
            ]
    return lines


# What the two runs that are shipped came to: training loss of each epoch, held-out loss after each epoch.
FLAGSHIP = ([4.80, 4.07], [4.580, 4.545])
RETUNED_TOO_LONG = ([4.78, 3.86, 3.12], [4.549, 4.551, 4.773])
QUICKSTART = (
    [5.9, 4.1, 2.4, 1.5, 0.9, 0.6, 0.3, 0.1, 0.05, 0.033],
    [4.902, 4.013, 3.784, 3.613, 3.622, 3.591, 3.572, 3.680, 3.685, 3.69],
)


@pytest.mark.parametrize(
    ("run", "word", "reason"),
    [
        (FLAGSHIP, "good", "at-best"),
        (RETUNED_TOO_LONG, "over-fitting", "past-best"),
        (QUICKSTART, "over-fitting", "past-best"),
        (([4.93, 4.48, 4.30], [4.691, 4.607, 4.588]), "good", "at-best"),
        (([4.78, 3.86], [4.549, 4.551]), "fair", "above-best"),
        (([2.0, 0.62], [0.4, 0.4041]), "over-fitting", "past-best"),
        (([2.0, 0.01], [0.4, 0.404]), "fair", "above-best"),
        (([2.0, 0.01], [4.2, 4.0]), "not-enough", "still-falling"),
        (([2.0, 0.05], [0.2, 0.09]), "excellent", "at-best"),
        (([2.0, 0.05], [0.09, 0.095]), "over-fitting", "past-best"),
        (([2.0, 0.01], [3.0]), "cannot-tell", "evaluated-once"),
        (([2.0, 0.01], []), "cannot-tell", "not-evaluated"),
        (([6.61, 6.60], [6.5, 6.4]), "nothing-learned", "loss-hardly-moved"),
        (([2.0], [1.9]), "cannot-tell", "evaluated-once"),
    ],
)
def test_held_out_loss_decides(run: tuple[list[float], list[float]], word: str, reason: str) -> None:
    assert judgement.judge(history(*run), 1, 20) == Judgement(word, reason)


@pytest.mark.parametrize(
    ("held_out", "reason"), [(0, "no-held-out"), (1, "one-held-out-sample"), (2, "few-held-out"), (19, "few-held-out")]
)
def test_without_held_out_samples_nobody_can_tell(held_out: int, reason: str) -> None:
    """However low the training loss is: with one sample by chance, with none at all."""
    lines = history([2.0, 0.01], [0.4, 0.3] if held_out else [])
    assert judgement.judge(lines, 1, held_out) == Judgement("cannot-tell", reason)
    assert judgement.loss_band(0.01) == "excellent"


def test_early_stopping_is_judged_by_the_checkpoint_that_it_kept() -> None:
    lines = history([2.0, 1.0, 0.5], [1.5, 1.49, 1.9])
    assert judgement.judge(lines, 1, 20) == Judgement("over-fitting", "past-best")
    assert judgement.judge(lines, 1, 20, keeps_best=True) == Judgement("good", "at-best")


def test_a_fall_is_that_of_an_epoch_and_not_of_two_evaluations() -> None:
    """Evaluated often, the loss falls little from one evaluation to the next."""
    evaluated = [{"step": 2 * n, "eval_loss": 3.0 - 0.02 * n} for n in range(1, 11)]
    lines = sorted([*history([3.0] * 10 + [1.0] * 10, []), *evaluated], key=lambda line: line["step"])
    assert judgement.judge(lines, 10, 20) == Judgement("not-enough", "still-falling")


def test_whether_anything_was_learned_is_not_told_by_noise() -> None:
    """The same samples are compared: the first epoch with the last, not step with step."""
    still = history([5.0, 6.0, 7.0] * 3, [])
    assert not judgement.has_learned(curve_of(still), 3)
    assert judgement.has_learned(curve_of(history([5.0, 6.0, 7.0, 4.8, 5.8, 6.8], [])), 3)
    assert judgement.has_learned(curve_of(history([0.2, 0.2], [])), 1), "a base that knew the answers before"
    assert judgement.has_learned(curve_of(history([5.0], [])), 1) and judgement.has_learned(Curve(), 1)
    assert judgement.judge(still, 3, 10, from_base=False) == Judgement("cannot-tell", "not-evaluated")


def test_no_step_no_verdict() -> None:
    assert judgement.judge([], 1, 10) is None and judgement.loss_band(None) is None


def test_the_thresholds_themselves() -> None:
    assert not judgement.has_risen(1.01, [1.0, 1.01]) and judgement.has_risen(1.0101, [1.0, 1.0101])
    assert not judgement.has_risen(None, []) and not judgement.has_risen(1.0, [])
    assert not judgement.is_far_above(0.7, 0.2) and judgement.is_far_above(0.71, 0.2)
    assert [judgement.is_under_trained(EpochMeans(*means)) for means in ((0.5, 0.8), (0.51, 0.9), (0.1, 0.79))] == [
        False, True, True,
    ]  # fmt: skip
    assert [judgement.loss_band(loss) for loss in (0.0999, 0.1, 0.2999, 0.3, 0.5)] == [
        "excellent", "good", "good", "fair", "not-enough",
    ]  # fmt: skip
