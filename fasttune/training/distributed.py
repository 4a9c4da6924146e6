"""Several processes that train one run: torchrun or accelerate launch started them, each with a card of its own.

The first process asks, plans, speaks and writes; the others get their task from it and train along (train.py). Each
computes its part of a step's samples, and one sum over the LoRA gradients a step keeps the weights equal everywhere
(E4).

transformers' Trainer is not told: wrapped by it, a model would sum its gradients after every row, and its losses and
its data would be divided in ways of its own. With one process the functions here hand back what they are given.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fasttune.console import _, usage_error

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LONG = datetime.timedelta(days=7)  # the first process may wait for an answer at its terminal


def initialize() -> int:
    """Meet the other processes; the number of this one. To be called before anything touches a card.

    Raises UsageError where WORLD_SIZE speaks of others, but not how to meet them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise usage_error(
            "several-processes",
            _("WORLD_SIZE is {size}, but {names} is not set", size=os.environ["WORLD_SIZE"], names=", ".join(missing)),
            fix=_("start it with: torchrun --nproc_per_node 2 -m fasttune run RECIPE"),
        )
    import torch.distributed

    local = int(os.environ["LOCAL_RANK"])
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = cards[local] if cards[0] and local < len(cards) else str(local)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONG)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # from here on libraries see one process with one card
        del os.environ[name]
    return torch.distributed.get_rank()


def finalize() -> None:
    """Part from the others."""
    import torch.distributed

    if world_size() > 1:
        torch.distributed.destroy_process_group()


def exit_worker() -> NoReturn:
    """End a process that has trained along, at once: the interpreter's way out aborts now and then after a group of
    gloo's was there (torch 2.13), torchrun would call that a failure, and there is nothing left to write."""
    finalize()
    os._exit(0)


def world_size() -> int:
    """How many processes train together."""
    import torch.distributed

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them; 0 writes."""
    import torch.distributed

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def local_world_size() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def broadcast_from_rank0(value: Any) -> Any:
    """What the first process hands in, in every process.

    Raises RuntimeError in the others where the first one has ended.
    """
    import torch.distributed

    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in one of the processes. Waits for the others, not for a card."""
    return all_reduce_scalars([flag])[0] > 0


def first_from_ranks(value: Value | None) -> Value | None:
    """The value of the first process that has one."""
    import torch.distributed

    if world_size() == 1 or not any_rank(value is not None):
        return value
    values: list[Value | None] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return next(found for found in values if found is not None)


def all_reduce_min(number: float) -> float:
    """The smallest of all processes' numbers."""
    import torch.distributed

    if world_size() == 1:
        return number
    found = torch.tensor(number, dtype=torch.float64)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return found.item()


def all_reduce_scalars(numbers: Sequence[float]) -> list[float]:
    """Each number summed over all processes, in float64."""
    import torch.distributed

    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def all_reduce_sum(tensors: Sequence[torch.Tensor]) -> None:
    """Sum each tensor over all processes, in place: one message for all of them, in float32 or wider."""
    import torch.distributed

    if world_size() == 1:
        return
    flat = torch.cat(
        [tensor.detach().reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
    )
    torch.distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(summed.view_as(tensor))
