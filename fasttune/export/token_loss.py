"""The loss of a conversation by a GGUF file, as training takes it: over the supervised tokens, in nats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fasttune.export.llama import Model


def token_loss(model: Model, tokens: Sequence[int], supervised: Sequence[tuple[int, int]]) -> tuple[float, int]:
    """(summed loss, how many of the supervised tokens the file ranks first) of one sample's token ids.

    `supervised` are half-open spans, none of which begins at 0. Raises FasttuneError where llama.cpp can't compute it.
    """
    loss, hits = 0.0, 0
    for start, end in supervised:
        logits = model.logits(tokens[: end - 1], last=end - start).astype(np.float64)
        labels = np.asarray(tokens[start:end])
        highest = logits.max(axis=1)
        normalizers = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        loss += float((normalizers - logits[np.arange(len(labels)), labels]).sum())
        hits += int((logits.argmax(axis=1) == labels).sum())
    return loss, hits
