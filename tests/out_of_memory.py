"""Memory that runs out where a test says, and a process that "dies" where it says: for the tests of rows that are laid
out again (E3) and of runs that are resumed afterwards (E2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fasttune.training import model as models

NO_CHECKPOINTING = ("train.gradient_checkpointing=false",)


def fail_backward(states: Any, problem: Exception) -> Any:
    """The same hidden states, whose backward pass raises `problem`."""
    import torch

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Any) -> Any:
            return hidden.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise problem

    return Failing.apply(states)


@contextmanager
def little_memory(
    too_large: Callable[[int, int], bool], *, backward: bool = False, problem: Exception | None = None
) -> Iterator[list[int]]:
    """Rows run out of memory where `too_large(tokens, call)` says so: after their forward pass (which has drawn its random
    numbers) or in the middle of their backward pass. Yields the lengths of all rows that were run."""
    import torch

    real, seen = models.hidden_states, []

    def hidden_states(model: Any, batch: Any) -> Any:
        states, tokens = real(model, batch), batch.input_ids.shape[1]
        seen.append(tokens)
        if not too_large(tokens, len(seen)):
            return states
        failure = problem or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if backward and torch.is_grad_enabled():
            return fail_backward(states, failure)
        raise failure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "hidden_states", hidden_states)
        yield seen


@contextmanager
def steps_watched(dies_in: int = 0) -> Iterator[list[int]]:
    """The step that is being trained, as the last element; the process "dies" at the beginning of one of them."""
    from fasttune.training.trainer import StepTrainer

    real, trained = StepTrainer.training_step, [0]

    def training_step(self: Any, *inputs: Any) -> Any:
        trained.append(self.state.global_step + 1)
        if trained[-1] == dies_in:
            raise KeyboardInterrupt
        return real(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTrainer, "training_step", training_step)
        yield trained
