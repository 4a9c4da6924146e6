"""KL, what is kept, and perplexity are those of a direct computation; no logits are held whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exports import TINY, Expected, read_model

from fasttune.export import Artifact, kept, llama, reference
from fasttune.export.kept import Passage

PASSAGES = (
    Passage(tuple(range(100, 160)), ((3, 10), (20, 60))),
    Passage((*range(100, 110), *range(400, 640)), ((12, 250),)),  # longer than what is gathered at once
)


def test_kl_and_loss_are_those_of_torch() -> None:
    import torch

    random = np.random.default_rng(0)
    one = random.normal(scale=6, size=(40, 5000)).astype(np.float32)
    other = (one + random.normal(scale=0.01, size=one.shape) + 7).astype(np.float32)
    labels = random.integers(0, 5000, 40)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(logits).double(), -1) for logits in (one, other))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).numpy()
    assert expected.mean() < 1e-3 and np.abs(kept.kl_rows(one, other) - expected).max() < 3e-7
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(one).double(), torch.from_numpy(labels), reduction="none")
    assert np.abs(kept.losses(one, labels) - loss.numpy()).max() < 1e-5


def test_figures_of_a_file_are_those_of_all_logits_at_once(exported: dict[str, Artifact], material: Path) -> None:
    base, loras = read_model(material / "adapter")
    standard = kept.compute_reference(base, loras, PASSAGES)
    trained, untrained = kept.measure_reference(standard)
    assert untrained is not None
    with llama.open_gguf(exported["q4_k_m"].path, 512) as model:
        found = kept.measure_file(model, standard, from_base=True)
        whole = [model.logits(passage.tokens, last=len(passage.tokens)) for passage in PASSAGES]
    at = [(number, position - 1) for number, one in enumerate(PASSAGES) for start, end in one.spans
          for position in range(start, end)]  # fmt: skip
    file = np.stack([whole[number][position] for number, position in at])
    labels = np.array([PASSAGES[number].tokens[position + 1] for number, position in at])
    direct = {name: reference.forward(base, who, PASSAGES[0].tokens, 60) for name, who in
              (("trained", loras), ("base", {}))}  # fmt: skip
    first = [position for number, position in at if number == 0]
    assert found.kl[: len(first)] == pytest.approx(kept.kl_rows(direct["trained"][first], file[: len(first)]), abs=1e-5)
    assert untrained.kl[: len(first)] == pytest.approx(
        kept.kl_rows(direct["trained"][first], direct["base"][first]), abs=1e-5
    )
    assert found.loss == pytest.approx(kept.losses(file, labels), abs=1e-4)
    assert found.perplexity == pytest.approx(np.exp(kept.losses(file, labels).mean()), rel=1e-4)
    assert np.abs(trained.kl).max() < 1e-9 and trained.same_top.all() and len(found.kl) == len(at) == 285
    assert found.from_base is not None and found.from_base.mean() > found.kl.mean()


def test_a_part_of_a_reference_is_that_of_its_passages(material: Path) -> None:
    base, loras = read_model(material / "adapter")
    whole = kept.compute_reference(base, loras, PASSAGES)
    part, alone = whole.part(slice(1, None)), kept.compute_reference(base, loras, PASSAGES[1:])
    assert part.passages == PASSAGES[1:] and np.abs(part.trained - alone.trained).max() < 1e-3
    assert part.untrained is not None and part.untrained.shape == part.trained.shape
    assert (part.labels == alone.labels).all()


def test_a_hopeless_file_is_left_early(exported: dict[str, Artifact], material: Path) -> None:
    base, loras = read_model(material / "adapter")
    standard = kept.compute_reference(base, loras, PASSAGES)
    with llama.open_gguf(exported["q8_0"].path, 512) as model:
        found = kept.measure_file(model, standard, enough=lambda kl: len(kl) >= 40)
    assert 40 <= len(found.kl) < 285


def test_without_an_adapter_nothing_was_learned(expected: Expected) -> None:
    base, _loras = read_model(None)
    standard = kept.compute_reference(base, {}, PASSAGES[:1])
    assert standard.untrained is None and kept.measure_reference(standard)[1] is None
    assert TINY.is_dir()
