"""What several ranks do together, without torchrun: they are forked and meet through gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from scaled import use_loss_scale
from series import Series, document, largest_difference


def little_memory_on_rank_1() -> None:
    """Rank 1 has room for rows of 60 tokens."""
    import torch

    from fasttune.training import distributed, model

    real = model.hidden_states

    def hidden_states(peft_model: Any, batch: Any) -> Any:
        states = real(peft_model, batch)
        if distributed.rank() == 1 and batch.input_ids.shape[1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return states

    patch.object(model, "hidden_states", hidden_states).start()


def test_memory_runs_out_on_one_of_them(tmp_path: Path) -> None:
    """All plan again: the budget is the same everywhere, and nothing of the attempt counts."""
    one, two = Series.new(tmp_path / "one"), Series.new(tmp_path / "two")
    settings = ("train.max_steps=3", "train.gradient_checkpointing=false")
    one.train(*settings)
    ranks = two.train_ranks(*settings, prepare=little_memory_on_rank_1)
    assert [rank.exitcode for rank in ranks] == [0, 0], ranks
    assert ranks[0].log.count("; packing budget now ") == 1, ranks[0].log
    assert document(two.run(1) / "provenance.json")["tokens_per_row"] <= 60
    assert 0 < largest_difference(one.run(1), two.run(1)) < 2e-4


def float16_on_wsl2() -> None:
    """A loss scale, and a file that says which rank has limited its GPU memory before it loaded the base."""
    from fasttune.training import device, distributed, model

    use_loss_scale()
    load = model.load_base
    limited: list[bool] = []

    def load_base(*arguments: Any) -> Any:
        Path(f"limited{distributed.rank()}").write_text(str(limited))
        return load(*arguments)

    patch.object(device, "refuse_spilling", lambda: limited.append(True)).start()
    patch.object(model, "load_base", load_base).start()


def test_a_rank_without_a_row_has_a_loss_scale_too(tmp_path: Path) -> None:
    """One sample a step: the second rank computes nothing, and steps with the first."""
    one, two = Series.new(tmp_path / "one"), Series.new(tmp_path / "two")
    settings = ("train.max_steps=2", "train.batch_size=1", "train.max_grad_norm=0")
    one.train(*settings)
    ranks = two.train_ranks(*settings, prepare=float16_on_wsl2)
    assert [rank.exitcode for rank in ranks] == [0, 0], ranks
    assert largest_difference(one.run(1), two.run(1)) < 1e-6
    assert [(two.folder / f"limited{rank}").read_text() for rank in range(2)] == ["[True]"] * 2


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    first, worker = series.train_ranks("train.learning_rate=-1")
    assert (first.exitcode, worker.exitcode) == (2, 0)
    assert first.log.count("error: ") == 1 and worker.log == ""
    assert not (tmp_path / "runs").exists()
