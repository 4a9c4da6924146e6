"""bands.py: the epochs and the learning rate that suit a number of samples."""

from __future__ import annotations

import pytest

from fasttune.runs import bands


@pytest.mark.parametrize(
    ("samples", "band", "total"),
    [
        (1, (5.0, 8.0), 6.5),
        (19, (5.0, 8.0), 6.5),
        (20, (4.0, 6.0), 5.0),
        (49, (4.0, 6.0), 5.0),
        (50, (3.0, 4.0), 3.5),
        (200, (3.0, 4.0), 3.5),
        (201, (2.0, 3.0), 2.5),
        (5000, (2.0, 3.0), 2.5),
    ],
)
def test_epochs_by_the_number_of_samples(samples: int, band: tuple[float, float], total: float) -> None:
    assert bands.band(samples) == band and bands.band_epochs(samples) == total


@pytest.mark.parametrize(
    ("epochs", "samples", "suited"),
    [
        (6.5, 17, 1.7e-4),
        (3.0, 17, 3.6e-4),
        (1.0, 17, 5e-4),
        (10.0, 17, 1.1e-4),
        (3.5, 119, 2.3e-4),
        (2.5, 486, 2.7e-4),
        (1.0, 486, 5e-4),
        (9.0, 486, 1e-4),
    ],
)
def test_fewer_epochs_get_a_higher_learning_rate(epochs: float, samples: int, suited: float) -> None:
    """Learning rate × epochs is the same within the bounds."""
    assert bands.suiting_learning_rate(epochs, samples, 16, "Qwen/Qwen2.5-0.5B-Instruct") == suited
    assert bands.suiting_learning_rate(epochs, samples, 16, "builtin:tiny") == pytest.approx(10 * suited, rel=0.05)


@pytest.mark.parametrize(("alpha", "suited"), [(None, 3.6e-4), (16, 3.6e-4), (32, 2.6e-4), (64, 1.8e-4), (4, 7.2e-4)])
def test_four_times_the_alpha_gets_half_the_learning_rate(alpha: int | None, suited: float) -> None:
    """docs/defaults.md: alpha 16 at 4e-4 and alpha 64 at 2e-4 end alike, and the rank decides nothing."""
    assert bands.suiting_learning_rate(3.0, 17, alpha) == suited


@pytest.mark.parametrize(("epochs", "samples"), [(None, 17), (3.0, None), (0.0, 17), (None, None)])
def test_what_is_not_known_gets_the_rate_of_the_band(epochs: float | None, samples: int | None) -> None:
    assert bands.suiting_learning_rate(epochs, samples) == bands.RATE_IN_BAND
