"""The forward pass in numpy is that of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from exports import TINY, Expected, read_model

from fasttune.export import reference


def test_logits_are_those_of_transformers(material: Path, expected: Expected) -> None:
    ids = expected["ids"].tolist()
    for adapter, base, name in (
        (None, TINY, "base"),
        (material / "adapter", TINY, "merged"),
        (None, material / "untied", "untied"),
    ):
        logits = reference.forward(*read_model(adapter, base), ids, len(ids))
        assert np.abs(logits - expected[name]).max() < 2e-4 * np.abs(expected[name]).max()


def test_only_the_last_positions(expected: Expected) -> None:
    ids = expected["ids"].tolist()
    logits = reference.forward(*read_model(None), ids, 3)
    assert logits.shape == (3, 5120) and np.abs(logits - expected["base"][-3:]).max() < 0.01


def test_log_softmax_of_large_logits() -> None:
    found = reference.log_softmax(np.array([[1e4, 1e4], [0.0, -1e4]]))
    assert np.allclose(found, [[-np.log(2), -np.log(2)], [0, -1e4]])
