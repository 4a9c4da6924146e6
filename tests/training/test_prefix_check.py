"""The check of shared prefixes: correct attention passes, attention that is wrong by one token does not, and the run then
shares no prefix. What a GPU's attention is checked by before its first step, tested on the CPU's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from series import Series, adapter, document, history

from fasttune.data.tokenize import Example
from fasttune.training import device, prefix_check
from fasttune.training.attention import Layout
from fasttune.training.packing import plan_step

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
    found = document(checked.run(1) / "provenance.json")["sharing_check"]
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


def test_nothing_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "needs_prefix_check", lambda: True)
    series = Series.new(tmp_path)
    series.train(*SETTINGS, "lora.dropout=0.1")  # prefixes are not shared: no check
    assert document(series.run(1) / "provenance.json")["sharing_check"] is None


def test_a_pair_of_rows() -> None:
    examples = [Example(str(n), (*range(50), 100 + n, 7, 8), ((51, 53),)) for n in range(6)]
    examples.append(Example("alone", tuple(range(300, 310)), ((5, 10),)))
    shared, plain = prefix_check.paired_rows(examples, plan_step(examples, range(7), 4096).rows) or ([], [])
    (row,) = shared
    assert row.groups[0].prefix == 50 and len(row.groups[0].members) == prefix_check.SAMPLES
    assert row.tokens == 50 + prefix_check.SAMPLES * 3
    assert [row.tokens for row in plain] == [53] * prefix_check.SAMPLES
    assert prefix_check.paired_rows(examples, plan_step(examples, [0, 6], 4096).rows) is None


def test_not_a_number_is_a_difference() -> None:
    loss, gradients = torch.tensor(2.0), [torch.ones(3), torch.ones(2, 2)]
    same = prefix_check.relative_difference((loss, gradients), (loss, gradients))
    assert same == prefix_check.Difference(0, 0) and same.within(1e-9)
    broken = prefix_check.relative_difference((loss, [torch.tensor([1, 1, math.nan]), gradients[1]]), (loss, gradients))
    assert not broken.within(1)
    half = prefix_check.relative_difference((loss * 1.5, [gradient * 1.5 for gradient in gradients]), (loss, gradients))
    assert half.loss == pytest.approx(0.5) and half.gradient == pytest.approx(0.5)
