"""The epochs and the learning rate that suit a number of samples: what "auto" takes (planning/auto_values.py) and what
a training is judged by (judgement.py). docs/defaults.md has the measurements."""

from __future__ import annotations

import math

# Total epochs by number of samples: below this many samples, from, to. They judge a data set, not a run.
BANDS = ((20, 5.0, 8.0), (50, 4.0, 6.0), (201, 3.0, 4.0), (math.inf, 2.0, 3.0))

RATE_IN_BAND = 2e-4  # the LoRA learning rate for the epochs of the band, of bases of 0.5 to 3 billion parameters
LOWEST_RATE, HIGHEST_RATE = 1e-4, 5e-4
TINY, TINY_FACTOR = "builtin:tiny", 10  # the built-in base has 4.5 million parameters and wants ten times as much


def band(samples: int) -> tuple[float, float]:
    """The lowest and the highest number of total epochs that suit so many samples."""
    return next((low, high) for limit, low, high in BANDS if samples < limit)


def band_epochs(samples: int) -> float:
    """The total epochs that suit so many samples: the middle of the band, rounded up to half an epoch."""
    low, high = band(samples)
    return math.ceil(low + high) / 2


def suiting_learning_rate(epochs: float | None, samples: int | None, base: str | None = None) -> float:
    """The LoRA learning rate that suits a number of epochs of a number of samples, of two digits.

    RATE_IN_BAND where one of them is unknown or nothing is trained.

    Measured (docs/defaults.md): on one data set the held-out loss is lowest where learning rate × epochs comes to the
    same product, 2e-4 × the epochs of the band. So half the epochs want twice the rate; from 5e-4 on the lowest loss
    is higher, and below 1e-4 an epoch moves too little.
    """
    rate = RATE_IN_BAND
    if epochs and samples:
        rate = min(max(RATE_IN_BAND * band_epochs(samples) / epochs, LOWEST_RATE), HIGHEST_RATE)
    return float(f"{TINY_FACTOR * rate if base == TINY else rate:.2g}")
