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


def test_sequences_with_a_shared_prefix_are_computed_as_if_alone(material: Path, expected: Expected) -> None:
    """The prefix once, a sequence that is a prefix of another, and more queries than are attended at once."""
    base, loras = read_model(material / "adapter")
    ids = expected["ids"].tolist()
    sequences = [ids[:40], ids[:20] + ids[:30], ids[:21], ids * 3]
    layout = reference.lay_out(sequences)
    assert layout.spans[0] == (0, 20) and len(layout.ids) < sum(map(len, sequences)) - 59
    hidden = reference.hidden_states(base, loras, layout)
    for number, sequence in enumerate(sequences):
        own = [layout.at(number, position) for position in range(len(sequence))]
        assert [layout.ids[index] for index in own] == sequence
        alone = reference.hidden_states(base, loras, reference.lay_out([sequence]))
        assert np.abs(hidden[own] - alone).max() < 1e-3


def test_the_inputs_of_every_matrix_are_watched(expected: Expected) -> None:
    base, _loras = read_model(None)
    seen: dict[str, tuple[int, ...]] = {}
    layout = reference.lay_out([expected["ids"].tolist()])
    reference.hidden_states(base, {}, layout, lambda name, inputs: seen.update({name: inputs.shape}))
    matrices = [name for name, tensor in base.tensors.items() if ".layers." in name and len(tensor.shape) == 2]
    assert seen.keys() == set(matrices)
    assert all(seen[name] == (len(layout.ids), base.tensors[name].shape[1]) for name in matrices)
