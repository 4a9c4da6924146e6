"""How many samples to hold out: the one rule that `fasttune init`, a sweep without held-out samples, and what diagnose
proposes follow.

    samples        held out
    fewer than 22  none: each is needed to learn from, and one or two tell nothing
    22 to 60       a third, as long as LEFT_TO_TRAIN are left
    60 to 200      the ENOUGH_HELD_OUT that a verdict takes
    200 to 1000    a tenth
    more           OF_MANY

Whoever asks for held-out samples all the same where there are fewer than 22 is given a third of them.
"""

from __future__ import annotations

import math

from fasttune.runs.judgement import ENOUGH_HELD_OUT, FEW_HELD_OUT

LEFT_TO_TRAIN = 20  # fewer samples hardly teach a persona
HOLD_OUT_FROM = LEFT_TO_TRAIN + FEW_HELD_OUT  # samples
OF_MANY = 100  # that tell the held-out loss well


def share_to_hold_out(samples: int) -> float:
    """The share of so many samples to hold out, by the table."""
    if samples > 10 * OF_MANY:
        return max(0.01, math.ceil(100 * OF_MANY / samples) / 100)
    share = min(max(math.ceil(100 * ENOUGH_HELD_OUT / max(samples, 1)) / 100, 0.1), 0.33)
    if samples < HOLD_OUT_FROM:
        return share
    return min(share, math.floor(100 * (samples - LEFT_TO_TRAIN) / samples) / 100)


def share_to_choose_by(samples: int) -> float:
    """That share, or where it is a single sample the one of FEW_HELD_OUT, by which two trainings can be compared; half
    of the samples at most."""
    share = share_to_hold_out(samples)
    if round(share * samples) >= FEW_HELD_OUT:
        return share
    return min(0.5, math.ceil(100 * FEW_HELD_OUT / samples) / 100)
