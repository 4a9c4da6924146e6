"""The epochs and the learning rate that suit a number of samples: what "auto" takes (planning/auto_values.py) and what
a training is judged by (judgement.py). docs/defaults.md has the measurements."""

from __future__ import annotations

import math

# Total epochs by number of samples: below this many samples, from, to. They judge a data set, not a run.
BANDS = ((20, 5.0, 8.0), (50, 4.0, 6.0), (201, 3.0, 4.0), (math.inf, 2.0, 3.0))

RATE_IN_BAND = 2e-4  # the usual LoRA learning rate, where epochs or samples are unknown
# learning rate × epochs / √(the band's epochs) at the lowest held-out loss, for bases of 0.5 to 3 billion parameters
RATE_BY_EPOCHS, ALPHA = 4.25e-4, 16
LOWEST_RATE, HIGHEST_RATE = 1e-4, 5e-4  # for that alpha
TINY, TINY_FACTOR = "builtin:tiny", 10  # the built-in base has 4.5 million parameters and wants ten times as much


def band(samples: int) -> tuple[float, float]:
    """The lowest and the highest number of total epochs that suit so many samples."""
    return next((low, high) for limit, low, high in BANDS if samples < limit)


def band_epochs(samples: int) -> float:
    """The total epochs that suit so many samples: the middle of the band, rounded up to half an epoch."""
    low, high = band(samples)
    return math.ceil(low + high) / 2


def suiting_learning_rate(
    epochs: float | None, samples: int | None, alpha: int | None = None, base: str | None = None
) -> float:
    """The LoRA learning rate that suits a number of epochs of a number of samples with lora.alpha, of two digits.

    RATE_IN_BAND where epochs or samples are unknown or nothing is trained; ALPHA where `alpha` is unknown.

    Measured (docs/defaults.md): on one data set the held-out loss is lowest where learning rate × epochs × √alpha comes
    to the same product, whatever the rank; it grows with the root of the band's epochs. So half the epochs want twice
    the rate, and four times the alpha half of it; from 5e-4 on (alpha 16) the lowest loss is higher, and below 1e-4 an
    epoch moves too little.
    """
    rate = RATE_IN_BAND
    if epochs and samples:
        rate = RATE_BY_EPOCHS * math.sqrt(band_epochs(samples)) / epochs
        rate = min(max(rate, LOWEST_RATE), HIGHEST_RATE) * math.sqrt(ALPHA / (alpha or ALPHA))
    return float(f"{TINY_FACTOR * rate if base == TINY else rate:.2g}")
