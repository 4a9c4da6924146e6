"""Several processes that train one run: torchrun or accelerate launch starts them, each with a GPU of its own.

Rank 0 asks, plans, speaks and writes; the workers get their task from it (train.train_as_worker). Each rank computes
its part of a step's samples, and one all-reduce of the LoRA gradients a step keeps the weights equal on all of them
(E4).

transformers' Trainer does not know about the ranks: it would wrap the model in DistributedDataParallel, which sums the
gradients after every row, and divide data and losses in its own way. With one process the functions here return what
they are given.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fasttune.console import _, error, ngettext, usage_error

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
REQUIRED_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = datetime.timedelta(days=7)  # rank 0 may wait for an answer at its terminal


def initialize() -> int:
    """Join the process group that the environment describes; returns this process's rank. Call it before anything
    uses a GPU.

    Raises UsageError where WORLD_SIZE is above 1 and a variable that torch.distributed needs is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    missing = [name for name in REQUIRED_VARIABLES if name not in os.environ]
    if missing:
        raise usage_error(
            "several-processes",
            ngettext("WORLD_SIZE is {size}, but {names} is not set", "WORLD_SIZE is {size}, but {names} are not set",
                     len(missing), size=os.environ["WORLD_SIZE"], names=", ".join(missing)),
            fix=_("start it with: `torchrun --nproc_per_node 2 -m fasttune run RECIPE`"),
        )  # fmt: skip
    import torch.distributed

    local_rank = int(os.environ["LOCAL_RANK"])
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank] if gpus[0] and local_rank < len(gpus) else str(local_rank)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # from here on libraries see one process with one GPU
        del os.environ[name]
    return torch.distributed.get_rank()


def finalize() -> None:
    """Leave the process group."""
    import torch.distributed

    if world_size() > 1:
        torch.distributed.destroy_process_group()


def exit_worker() -> NoReturn:
    """End a worker at once, without the interpreter's shutdown: after a gloo process group it aborts now and then
    (torch 2.13), which torchrun would report as a failure, and a worker has nothing left to write."""
    finalize()
    os._exit(0)


def world_size() -> int:
    """How many processes train this run."""
    import torch.distributed

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    import torch.distributed

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def local_world_size() -> int:
    """How many processes of this run share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """For a call that waits for the other ranks.

    Raises FasttuneError (`rank-ended`) where one of them has ended: gloo and NCCL raise a RuntimeError that names the
    closed connection, which says neither that nor what to do.
    """
    try:
        yield
    except RuntimeError as problem:
        raise error(
            "rank-ended",
            _("another process of this training has ended"),
            why=_("its message stands above; one that was killed leaves none, and lack of memory is the usual reason"),
        ) from problem


def broadcast_from_rank0(value: Any) -> Any:
    """Rank 0's value, on every rank; what the others pass is ignored. Raises FasttuneError as `collective` does."""
    import torch.distributed

    if world_size() == 1:
        return value
    values = [value]
    with collective():
        torch.distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. Waits for the other processes, not for the GPU."""
    return all_reduce_scalars([flag])[0] > 0


def first_from_ranks(value: Value | None) -> Value | None:
    """The value of the lowest rank that has one, None where none has."""
    import torch.distributed

    if world_size() == 1 or not any_rank(value is not None):
        return value
    values: list[Value | None] = [None] * world_size()
    with collective():
        torch.distributed.all_gather_object(values, value)
    return next(found for found in values if found is not None)


def all_reduce_min(number: float) -> float:
    """The smallest number of all ranks."""
    import torch.distributed

    if world_size() == 1:
        return number
    found = torch.tensor(number, dtype=torch.float64)
    with collective():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
    return found.item()


def all_reduce_scalars(numbers: Sequence[float]) -> list[float]:
    """Each number summed over all ranks, in float64."""
    import torch.distributed

    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    with collective():
        torch.distributed.all_reduce(sums)
    return sums.tolist()


def all_reduce_sum(tensors: Sequence[torch.Tensor]) -> None:
    """Sum each tensor over all ranks, in place: one collective call for all of them, in float32 or wider."""
    import torch.distributed

    if world_size() == 1:
        return
    flat = torch.cat(
        [tensor.detach().reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
    )
    with collective():
        torch.distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(summed.view_as(tensor))
