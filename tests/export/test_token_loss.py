"""The loss of a GGUF file over supervised tokens: that of its own logits, and near that of training."""

from __future__ import annotations

import numpy as np
import pytest
from exports import Expected

from fasttune.export import Artifact, llama
from fasttune.export.token_loss import token_loss


def test_loss_and_hits_are_those_of_the_logits(exported: dict[str, Artifact], expected: Expected) -> None:
    ids = [int(one) for one in expected["ids"]]
    supervised = [(5, 9), (20, 30)]
    with llama.open_gguf(exported["f16"].path, 512) as model:
        logits = model.logits(ids, last=len(ids)).astype(np.float64)
        loss, hits = token_loss(model, ids, supervised)
    positions = [at for start, end in supervised for at in range(start, end)]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-sum(np.log(probabilities[at - 1, ids[at]]) for at in positions), rel=1e-3)
    assert hits == sum(int(logits[at - 1].argmax()) == ids[at] for at in positions)
