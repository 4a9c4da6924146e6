"""The check of packed rows: correct attention passes, attention that is wrong by one token does not, and the run then
shares no prefix, or packs nothing. What a GPU's attention is checked by before its first step, tested on the CPU's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from series import Series, adapter, document, history

from fasttune.data.tokenize import Example
from fasttune.training import attention, device, prefix_check
from fasttune.training import model as models
from fasttune.training.attention import Layout
from fasttune.training.packing import Row

SETTINGS = ("train.max_steps=2",)


def one_too_few(layout: Layout) -> slice:
    """Suffixes that do not see the last token of their prefix."""
    return slice(0, layout.prefix_tokens - 1)


def one_too_late(layout: Layout) -> slice:
    """Suffixes that see the first token of the group's first suffix, and not the first one of the prefix."""
    return slice(1, layout.prefix_tokens + 1)


def test_good_attention_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "needs_prefix_check", lambda: True)
    checked, plain = Series.new(tmp_path / "checked"), Series.new(tmp_path / "plain")
    assert "switched off" not in checked.train(*SETTINGS).stderr
    for name in ("sharing_check", "packing_check"):
        found = document(checked.run(1) / "provenance.json")[name]
        assert 0 <= found["loss"] < 1e-5 and 0 < found["gradient"] < 1e-5
    monkeypatch.undo()
    plain.train(*SETTINGS)
    assert adapter(checked.run(1)) == adapter(plain.run(1))  # the check leaves nothing behind


@pytest.mark.parametrize("keys", [one_too_few, one_too_late])
def test_wrong_attention_switches_sharing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Any) -> None:
    wrong, unshared = Series.new(tmp_path / "wrong"), Series.new(tmp_path / "unshared")
    unshared.train(*SETTINGS, "train.shared_prefix=false")
    monkeypatch.setattr(device, "needs_prefix_check", lambda: True)
    monkeypatch.setattr(Layout, "keys", property(keys))
    done = wrong.train(*SETTINGS)
    assert (
        "shared prefixes give another loss or gradient than plain attention here; they are switched off" in done.stderr
    )
    found = document(wrong.run(1) / "provenance.json")["sharing_check"]
    assert found["gradient"] > prefix_check.TOLERANCE[torch.bfloat16]  # noticed in 16 bit as well
    assert adapter(wrong.run(1)) == adapter(unshared.run(1))
    assert history(wrong.run(1))[0]["computed_tokens"] == history(unshared.run(1))[0]["computed_tokens"]


def test_samples_that_see_each_other_get_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, single = Series.new(tmp_path / "wrong"), Series.new(tmp_path / "single")
    single.train(*SETTINGS, "train.tokens_per_row=0")
    right = attention.layout

    def one_segment_too_few(groups: Sequence[Any], alone: Sequence[int]) -> Layout:
        """Where nothing is shared, the second sample of a row sees the first."""
        return right(groups, alone) if groups or len(alone) < 2 else right(groups, [sum(alone[:2]), *alone[2:]])

    monkeypatch.setattr(device, "needs_prefix_check", lambda: True)
    monkeypatch.setattr(attention, "layout", one_segment_too_few)
    done = wrong.train(*SETTINGS)
    assert "each row holds one sample now" in done.stderr and "switched off" not in done.stderr
    found = document(wrong.run(1) / "provenance.json")["packing_check"]
    assert found["gradient"] > prefix_check.TOLERANCE[torch.bfloat16]  # noticed in 16 bit as well
    assert adapter(wrong.run(1)) == adapter(single.run(1))


def test_dropout_is_left_out_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "needs_prefix_check", lambda: True)
    series = Series.new(tmp_path)
    assert "switched off" not in series.train(*SETTINGS, "lora.dropout=0.1").stderr
    found = document(series.run(1) / "provenance.json")
    assert found["sharing_check"]["gradient"] < 1e-5 and found["packing_check"]["gradient"] < 1e-5


class Halves:
    """A trainer of one weight, whose gradient is a scaled loss's rounded to float16, where half of the loss lies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slope: float) -> None:
        self.weight, self.slope = torch.nn.Parameter(torch.zeros(4)), slope
        self.model = SimpleNamespace(train=lambda: None, modules=list, parameters=lambda: [self.weight])
        self.examples = [Example(str(n), (1, 2, 3), ((1, 3),)) for n in range(2)]
        self.plan = SimpleNamespace(recipe=SimpleNamespace(model=None))
        monkeypatch.setattr(device, "compute_dtype", lambda _recipe: torch.float16)
        monkeypatch.setattr(models, "drop_gradients", lambda _model: setattr(self.weight, "grad", None))
        monkeypatch.setattr(models, "collect_gradients", lambda _model: None)
        self.weight.register_hook(lambda gradient: gradient.half().float())

    def row_loss(self, _examples: Any, row: Row) -> tuple[torch.Tensor, None]:
        count = len(row.groups)  # rounded alike where the scale makes up for it, and 0 where it does not
        return 1.0 + (self.weight * self.slope).sum() * count, None


@pytest.mark.parametrize(("slope", "finite"), [(2e-8, True), (1e3, True), (1e9, False)])
def test_float16_is_compared_under_a_loss_scale(monkeypatch: pytest.MonkeyPatch, slope: float, finite: bool) -> None:
    """Small gradients are not 0 there, and large ones are compared under a smaller scale."""
    trainer: Any = Halves(monkeypatch, slope)
    pair = prefix_check.packed_pair(trainer.examples)
    assert pair is not None
    found = prefix_check.measure(trainer, pair)
    assert (found is not None and found.gradient < 1e-2) if finite else found is None


def test_what_could_not_be_compared_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_anything: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device, "needs_prefix_check", lambda: True)
    monkeypatch.setattr(prefix_check, "loss_and_gradients", no_memory)
    series = Series.new(tmp_path)
    done = series.train(*SETTINGS)
    assert done.stderr.count("packed rows were not compared with plain attention here") == 2
    found = document(series.run(1) / "provenance.json")
    assert found["sharing_check"] is None and found["packing_check"] is None


def test_dropout_is_put_back() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(2, 2), torch.nn.Dropout(0.3))
    with prefix_check.without_dropout(model):
        assert [one.p for one in model if isinstance(one, torch.nn.Dropout)] == [0, 0]
    assert [one.p for one in model if isinstance(one, torch.nn.Dropout)] == [0.1, 0.3]


def test_pairs_of_rows() -> None:
    examples = [Example(str(n), (*range(50), 100 + n, 7, 8), ((51, 53),)) for n in range(6)]
    examples.append(Example("alone", tuple(range(300, 310)), ((5, 10),)))
    (row,), plain = prefix_check.shared_pair(examples) or ([], [])
    assert row.groups[0].prefix == 50 and len(row.groups[0].members) == prefix_check.SAMPLES
    assert row.tokens == 50 + prefix_check.SAMPLES * 3
    assert [row.tokens for row in plain] == [53] * prefix_check.SAMPLES
    short = [Example(f"s{n}", (*range(200, 220), 400 + n), ((20, 21),)) for n in range(2)]
    (row,), plain = prefix_check.shared_pair([*examples, *short]) or ([], [])
    assert row.groups[0].members == (7, 8) and row.tokens == 23  # of two groups the one that takes least
    assert prefix_check.shared_pair([examples[0], examples[6]]) is None
    (row,), plain = prefix_check.packed_pair(examples) or ([], [])
    assert [group.prefix for group in row.groups] == [0] * prefix_check.SAMPLES and row.groups[0].members == (6,)
    assert row.tokens == sum(one.tokens for one in plain) == 10 + 3 * 53
    assert prefix_check.packed_pair(examples[:1]) is None


def test_not_a_number_is_a_difference() -> None:
    loss, gradients = torch.tensor(2.0), [torch.ones(3), torch.ones(2, 2)]
    same = prefix_check.relative_difference((loss, gradients), (loss, gradients))
    assert same == prefix_check.Difference(0, 0) and same.within(1e-9)
    broken = prefix_check.relative_difference((loss, [torch.tensor([1, 1, math.nan]), gradients[1]]), (loss, gradients))
    assert not broken.within(1)
    half = prefix_check.relative_difference((loss * 1.5, [gradient * 1.5 for gradient in gradients]), (loss, gradients))
    assert half.loss == pytest.approx(0.5) and half.gradient == pytest.approx(0.5)
