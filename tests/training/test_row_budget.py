"""The arithmetic of row budget, for made-up GPUs."""

from __future__ import annotations

from fasttune.runs.documents import RowRecord
from fasttune.training import row_budget
from fasttune.training.packing import Group, Row
from fasttune.training.row_budget import GIB, MemoryShape, RowBudget

QWEN_HALF = MemoryShape(layers=24, hidden=896, intermediate=4864, value_bytes=2, states=12, inner=4)


def test_a_budget_from_a_measured_row() -> None:
    """A row of 2048 tokens took 1 GiB of 10 free ones: 8 are used, 2048 tokens each."""
    assert row_budget.measured_budget(10 * GIB, 2048, GIB) == 8 * 2048
    assert row_budget.measured_budget(5 * GIB, 2048, GIB) == 4 * 2048
    assert row_budget.measured_budget(2 * GIB, 2048, GIB) == 1.5 * 2048  # half a GiB stays free
    assert row_budget.measured_budget(80 * GIB, 2048, GIB) == row_budget.LONGEST_ROW
    assert row_budget.measured_budget(GIB // 4, 2048, GIB) == row_budget.SMALLEST_ROW
    assert row_budget.measured_budget(10 * GIB, 2000, GIB) % row_budget.BLOCK == 0


def test_a_budget_before_anything_was_measured() -> None:
    layer = (12 * 896 + 4 * 4864) * 4
    recomputed = 3 * GIB // (24 * 896 * 2 + layer) // 128 * 128
    assert recomputed < row_budget.LONGEST_ROW
    assert row_budget.estimated_budget(6 * GIB, QWEN_HALF, True) == recomputed
    assert (
        row_budget.estimated_budget(6 * GIB, QWEN_HALF, False)
        == 3 * GIB // (24 * layer) // 128 * 128
        < row_budget.SMALL_ROW
    )
    assert row_budget.estimated_budget(6 * GIB, QWEN_HALF, "auto") == recomputed  # rows would be short without
    assert row_budget.estimated_budget(20 * GIB, QWEN_HALF, "auto") == 10 * GIB // (24 * layer) // 128 * 128
    assert row_budget.estimated_budget(64 * GIB, QWEN_HALF, True) == row_budget.LONGEST_ROW


def test_gradient_checkpointing_is_for_rows_that_would_not_fit() -> None:
    """2.9 MB a token: 3000 tokens keep 8.1 GiB."""
    row = Row((), 3000)
    assert row_budget.needs_gradient_checkpointing(13 * GIB, QWEN_HALF, [Row((), 10), row])
    assert not row_budget.needs_gradient_checkpointing(14 * GIB, QWEN_HALF, [row])
    assert not row_budget.needs_gradient_checkpointing(GIB, QWEN_HALF, [])
    budget = row_budget.estimated_budget(20 * GIB, QWEN_HALF, "auto")
    assert not row_budget.needs_gradient_checkpointing(
        19 * GIB, QWEN_HALF, [Row((), budget)]
    )  # rows without come first


def test_what_to_do_about_a_row() -> None:
    several, single = Row((Group(10, (0, 1)),), 3000), Row((Group(0, (7,)),), 3000)
    short = Row((Group(10, (0, 1)),), row_budget.SMALL_ROW)
    assert row_budget.choose_remedy(several, may_checkpoint=True) == "smaller rows"
    assert row_budget.choose_remedy(several, may_checkpoint=False) == "smaller rows"
    assert row_budget.choose_remedy(short, may_checkpoint=True) == "gradient checkpointing"
    assert row_budget.choose_remedy(short, may_checkpoint=False) == "smaller rows"
    assert row_budget.choose_remedy(single, may_checkpoint=True) == "gradient checkpointing"
    assert row_budget.choose_remedy(single, may_checkpoint=False) == "none"


def test_budget_hold_from_their_moment_on() -> None:
    budget = RowBudget(4096)
    budget.cut(7, 1500)
    budget.cut(9.5, 700)
    assert [budget.at(moment) for moment in (1, 6.5, 7, 9, 9.5, 10, 99)] == [4096, 4096, 1500, 1500, 700, 700, 700]
    budget.cut(3, 1000)  # in a replay of earlier steps
    assert [budget.at(moment) for moment in (2.5, 3, 8, 10)] == [4096, 1000, 1000, 700]
    budget.measured = 2, 9000
    assert [budget.at(moment) for moment in (1, 1.5, 2, 7)] == [4096, 4096, 9000, 1000]
    assert (
        RowBudget.read(record := budget.record("auto", checkpointing=False)) == budget and record.tokens_per_row == 700
    )
    assert RowBudget.read(RowRecord(tokens_per_row=512)) == RowBudget(512)  # a run of an earlier version


def test_gradient_checkpointing_that_was_not_needed() -> None:
    """A row of 2,048 tokens took 0.5 GiB with it; without it this shape takes nearly ten times as much."""
    ratio = QWEN_HALF.token_bytes() / QWEN_HALF.checkpointed_token_bytes()
    assert 9 < ratio < 20
    taken = GIB // 2
    budget = row_budget.budget_without_checkpointing(20 * GIB, 2048, taken, QWEN_HALF)
    assert budget == row_budget.measured_budget(20 * GIB, 2048, taken * ratio) and budget >= 2048
    assert row_budget.budget_without_checkpointing(6 * GIB, 2048, taken, QWEN_HALF) is None
    long = row_budget.budget_without_checkpointing(20 * GIB, 16384, 3 * GIB, QWEN_HALF)
    assert long is not None and row_budget.SMALL_ROW <= long < 16384  # shorter rows, but no shorter than is worth it
