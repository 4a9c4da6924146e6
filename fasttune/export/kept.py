"""What a file keeps of what was learned, measured against the float32 reference, token by supervised token.

    learned = KL(trained ‖ base)                          by the reference alone
    kept    = 1 - KL(trained ‖ file) / KL(trained ‖ base)
    perplexity = exp of the mean loss over supervised tokens, as training takes it

A persona's distributions are flat: the best token changes with a breath, so how often it is the same says little, and
the same KL that ruins a short training is nothing beside a long one. What was learned is the measure.

Logits of 4,000 positions times 151,936 tokens would take gigabytes. The reference keeps hidden states, and both sides'
logits exist for GATHERED positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fasttune.export import nf4
from fasttune.export import reference as reference_model
from fasttune.export.llama import Model
from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base, Loras

GATHERED = 128  # positions whose logits are held at once: 78 MB a model with 151,936 tokens
ROWS = 16  # of logits that are reduced at once: 10 MB
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Passage:
    """The token ids of a conversation and the half-open spans of its supervised tokens, none of which begins at 0."""

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """The ids of the supervised tokens."""
        return tuple(token for start, end in self.spans for token in self.tokens[start:end])


@dataclass(frozen=True)
class Reference:
    """The trained model's last hidden states (positions, hidden_size) at the positions before the supervised tokens of
    the passages, and the base's without its adapter; None where there is no adapter. `in_4_bits` are those of the
    adapter on the base in NF4, as QLoRA has trained it; None after another training."""

    base: Base
    passages: tuple[Passage, ...]
    trained: FloatArray
    untrained: FloatArray | None
    in_4_bits: FloatArray | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """The ids of all supervised tokens (positions)."""
        return np.array([label for passage in self.passages for label in passage.labels], dtype=np.int64)

    def part(self, passages: slice) -> Reference:
        """The reference of some of the passages."""
        counts = [len(passage.labels) for passage in self.passages]
        first, last, _step = passages.indices(len(counts))
        rows = slice(sum(counts[:first]), sum(counts[:last]))
        untrained = None if self.untrained is None else self.untrained[rows]
        in_4_bits = None if self.in_4_bits is None else self.in_4_bits[rows]
        return Reference(self.base, self.passages[passages], self.trained[rows], untrained, in_4_bits)


@dataclass(frozen=True)
class Distances:
    """Of each position measured: KL(trained ‖ other) and the other's loss of the label in nats, and whether both rank
    the same token first. `from_base` is KL(base ‖ other), None where it was not asked for."""

    kl: Doubles
    loss: Doubles
    same_top: NDArray[np.bool_]
    from_base: Doubles | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return float(np.exp(self.loss.mean()))


Enough = Callable[[Doubles], bool]  # gets KL(trained ‖ file) of the positions so far; whether to measure no more


def compute_reference(base: Base, loras: Loras, passages: Sequence[Passage], *, is_qlora: bool = False) -> Reference:
    """The reference of passages, in float32: every weight is read and merged once; after QLoRA once more in NF4."""
    layout = reference_model.lay_out([passage.tokens for passage in passages])
    places = [
        layout.at(number, position - 1)
        for number, passage in enumerate(passages)
        for start, end in passage.spans
        for position in range(start, end)
    ]
    trained = reference_model.hidden_states(base, loras, layout)[places]
    untrained = reference_model.hidden_states(base, {}, layout)[places] if loras else None
    in_4_bits = reference_model.hidden_states(nf4.in_4_bits(base), loras, layout)[places] if is_qlora else None
    return Reference(base, tuple(passages), trained, untrained, in_4_bits)


def measure_reference(reference: Reference) -> tuple[Distances, Distances | None]:
    """The trained model's own distances, which hold its loss, and the base's, whose `kl` is what was learned (None
    where there is no adapter)."""
    trained, untrained = [], []
    for at in range(0, len(reference.trained), GATHERED):
        rows = slice(at, at + GATHERED)
        logits, labels = reference_model.logits(reference.base, reference.trained[rows]), reference.labels[rows]
        trained.append(compare(logits, logits, labels))
        if reference.untrained is not None:
            base = reference_model.logits(reference.base, reference.untrained[rows])
            untrained.append(compare(logits, base, labels))
    return joined(trained), joined(untrained) if untrained else None


def measure_4_bits(reference: Reference) -> Distances | None:
    """After QLoRA, the model that was trained against the one that is served: KL(adapter on NF4 ‖ adapter on 16 bits),
    and the former's loss. None after another training."""
    if reference.in_4_bits is None:
        return None
    found = []
    for at in range(0, len(reference.trained), GATHERED):
        rows = slice(at, at + GATHERED)
        served, trained = (
            reference_model.logits(reference.base, states[rows]) for states in (reference.trained, reference.in_4_bits)
        )
        same_top = served.argmax(axis=1) == trained.argmax(axis=1)
        found.append(Distances(kl_rows(trained, served), losses(trained, reference.labels[rows]), same_top))
    return joined(found)


def measure_file(
    model: Model, reference: Reference, *, from_base: bool = False, enough: Enough | None = None
) -> Distances:
    """A loaded file against the trained model. Raises FasttuneError where llama.cpp can't compute it."""
    found: list[Distances] = []
    gathered: list[FloatArray] = []
    done = 0
    for block in file_logits(model, reference.passages):
        gathered.append(block)
        waiting = sum(map(len, gathered))
        if waiting < GATHERED and done + waiting < len(reference.trained):
            continue
        found.append(distances(reference, done, np.concatenate(gathered), from_base=from_base))
        done, gathered = done + waiting, []
        if enough is not None and enough(np.concatenate([one.kl for one in found])):
            break
    return joined(found)


def file_logits(model: Model, passages: Sequence[Passage]) -> Iterator[FloatArray]:
    """Logits (at most GATHERED, vocab_size) of a file before the supervised tokens of each passage, in order."""
    for passage in passages:
        for start, end in passage.spans:
            for first in range(start, end, GATHERED):
                last = min(first + GATHERED, end)
                yield model.logits(passage.tokens[: last - 1], last=last - first)


def distances(reference: Reference, at: int, other: FloatArray, *, from_base: bool = False) -> Distances:
    """Logits (count, vocab_size) against the reference's at the positions from `at` on."""
    rows = slice(at, at + len(other))
    found = compare(reference_model.logits(reference.base, reference.trained[rows]), other, reference.labels[rows])
    if not from_base or reference.untrained is None:
        return found
    base = reference_model.logits(reference.base, reference.untrained[rows])
    return replace(found, from_base=kl_rows(base, other))


def compare(trained: FloatArray, other: FloatArray, labels: NDArray[np.int64]) -> Distances:
    """Two arrays of logits (positions, vocab_size)."""
    same_top = trained.argmax(axis=1) == other.argmax(axis=1)
    return Distances(kl_rows(trained, other), losses(other, labels), same_top)


def joined(whole: Sequence[Distances]) -> Distances:
    """The distances of consecutive positions as one."""
    from_base = [one.from_base for one in whole if one.from_base is not None]
    return Distances(
        np.concatenate([one.kl for one in whole]),
        np.concatenate([one.loss for one in whole]),
        np.concatenate([one.same_top for one in whole]),
        np.concatenate(from_base) if from_base else None,
    )


def kl_rows(one: FloatArray, other: FloatArray) -> Doubles:
    """KL(one ‖ other) in nats of each row of two arrays of logits (positions, vocab_size).

    = Σ p (one - other) - (log Z_one - log Z_other). Differences of like logits are exact in float32 and the sums are
    taken in float64, so that 150,000 rounded terms leave about 1e-7.
    """
    found = np.empty(len(one), dtype=np.float64)
    for start in range(0, len(one), ROWS):
        a, b = one[start : start + ROWS], other[start : start + ROWS]
        highest = a.max(axis=1, keepdims=True)
        weights = np.exp(a - highest)
        total = weights.sum(axis=1, dtype=np.float64)
        mean = (weights * (a - b)).sum(axis=1, dtype=np.float64) / total
        found[start : start + ROWS] = mean - (highest[:, 0] + np.log(total)) + log_normalizers(b)
    return found


def losses(logits: FloatArray, labels: NDArray[np.int64]) -> Doubles:
    """The loss in nats of each label (positions) by logits (positions, vocab_size)."""
    blocks = [log_normalizers(logits[start : start + ROWS]) for start in range(0, len(logits), ROWS)]
    found: Doubles = np.concatenate(blocks) - logits[np.arange(len(labels)), labels]
    return found


def log_normalizers(logits: FloatArray) -> Doubles:
    """log Σ exp of each row of logits (positions, vocab_size), summed in float64."""
    highest = logits.max(axis=1, keepdims=True)
    found: Doubles = np.log(np.exp(logits - highest).sum(axis=1, dtype=np.float64)) + highest[:, 0]
    return found
