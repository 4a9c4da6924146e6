"""The tiled loss against the plain one: value, hits and gradient, in every number type."""

from __future__ import annotations

import pytest
import torch

from fasttune.training import attention, cross_entropy, engine
from fasttune.training.cross_entropy import SupervisedCrossEntropy
from fasttune.training.engine import Batch


@pytest.mark.parametrize("tile", [1, 32 * 150, 32 * 300, 2**20])  # the least, two with a rest, all, more than all
def test_the_tiled_loss_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 50, 16, dtype=torch.float64, requires_grad=True)
    head = torch.randn(300, 16, dtype=torch.float64)
    label_positions, labels = torch.randperm(50)[:31], torch.randint(300, (31,))
    batch = Batch(torch.zeros(1, 50), torch.zeros(1, 50), label_positions, labels, attention.layout([], [50]))
    monkeypatch.setattr(cross_entropy, "TILE_ELEMENTS", {"cpu": tile})
    total, hits = engine.loss(hidden, head, batch)
    (total * 0.25).backward()
    fast, hidden.grad = hidden.grad, None
    logits = hidden[0, label_positions] @ head.T
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    (plain * 0.25).backward()
    assert total.item() == pytest.approx(plain.item(), rel=1e-12)
    assert int(hits) == int((logits.argmax(1) == labels).sum())
    assert torch.allclose(fast, hidden.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_large_logits_stays_exact_in_low_precision(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The running maximum must rescale what earlier tiles summed, or this overflows; sums are taken in float32."""
    torch.manual_seed(0)
    hidden, head = (torch.randn(40, 64) * 3).to(dtype), (torch.randn(500, 64) * 3).to(dtype)
    labels = torch.randint(500, (40,))
    batch = Batch(torch.zeros(1, 40), torch.zeros(1, 40), torch.arange(40), labels, attention.layout([], [40]))
    monkeypatch.setattr(cross_entropy, "TILE_ELEMENTS", {"cpu": 40 * 17})
    total, _hits = engine.loss(hidden[None], head, batch)
    logits = torch.nn.functional.linear(hidden, head).float()  # rounded to the dtype, as any head's logits are
    assert logits.max() > 100
    assert total.item() == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")),
        rel=1e-5 if dtype == torch.float32 else 2e-3,
    )


def sure_of_its_labels(dtype: torch.dtype, logit: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [256, 448] whose label has a logit of about `logit` more than the rest, the head [2048, 448] and
    the labels."""
    torch.manual_seed(0)
    head = (torch.randn(2048, 448) / 448**0.5).to(dtype)
    labels = torch.randint(2048, (256,))
    hidden = head[labels].float() * logit + torch.randn(256, 448) * 0.7
    return hidden.to(dtype), head, labels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logit", [1.0, 8.0, 20.0, 30.0])
def test_the_loss_in_16_bit_where_the_model_is_sure(dtype: torch.dtype, logit: float) -> None:
    """At a label's logit of 20 the exact mean loss is 0.00003 in these figures; with the label's own logit unrounded
    beside rounded ones it was 0.004, and half of the tokens had a loss below zero."""
    hidden, head, labels = sure_of_its_labels(dtype, logit)
    each = torch.stack([SupervisedCrossEntropy.apply(hidden[[i]], head, labels[[i]])[0] for i in range(64)])
    total, _hits = SupervisedCrossEntropy.apply(hidden, head, labels)
    logits = hidden.double() @ head.double().T
    exact = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert each.min() >= 0
    assert total.item() / 256 == pytest.approx(exact.mean().item(), rel=0.02, abs=1e-6)
    if dtype == torch.float16:  # bfloat16's logits of a single token have steps of 1/16 where the model is not sure
        assert (each.double() - exact[:64]).abs().max() < 2e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_the_gradient_is_rounded_once(dtype: torch.dtype, tolerance: float) -> None:
    """Against float64. 1 / 1003 in bfloat16 alone is off by 0.24 %, which every value of a step's gradient would share:
    the length along the exact gradient shows it, where roundings of single values cancel."""
    hidden, head, labels = sure_of_its_labels(dtype, 4.0)
    hidden.requires_grad_()
    total, _hits = SupervisedCrossEntropy.apply(hidden, head, labels)
    (total / 1003).backward()
    wide = hidden.detach().double().requires_grad_()
    (torch.nn.functional.cross_entropy(wide @ head.double().T, labels, reduction="sum") / 1003).backward()
    assert hidden.grad is not None and wide.grad is not None
    found, exact = hidden.grad.double(), wide.grad
    assert (found - exact).norm() <= tolerance * exact.norm()
    assert ((found * exact).sum() / exact.square().sum()).item() == pytest.approx(1, abs=min(tolerance, 3e-4))


def test_a_loss_scale_beyond_float16_is_no_overflow() -> None:
    """GradScaler's 65536 divided by one supervised token is infinite in float16; the scaled gradient is not."""
    hidden, head, labels = sure_of_its_labels(torch.float16, 12.0)
    hidden.requires_grad_()
    total, _hits = SupervisedCrossEntropy.apply(hidden[:1], head, labels[:1])
    total.mul(65536.0).backward()
    wide = hidden.detach()[:1].double().requires_grad_()
    torch.nn.functional.cross_entropy(wide @ head.double().T, labels[:1]).backward()
    assert hidden.grad is not None and wide.grad is not None
    expected = wide.grad * 65536
    assert (hidden.grad[:1].double() - expected).norm() < 0.02 * expected.norm()
