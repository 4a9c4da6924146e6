"""Reading a tensor's values on the host, noticed: on a GPU it waits for all that was launched, and a CUDA graph may not. On
a CPU it calls no operator that a dispatch mode would see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch

READS = (
    "item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__iter__",
)  # fmt: skip


@contextlib.contextmanager
def noticed(notice: Callable[[str], None]) -> Iterator[None]:
    """Within the block `notice` gets the name of each reading method as it is called, `.to("cpu")` included.

    Only under a dispatch mode: without one runs a kernel that is written in torch here, which reads what it likes. A
    tensor is moved to another one's device by that device; what names the CPU means the host.
    """

    def watched(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
            is_read = name != "to" or any(isinstance(one, str) and one == "cpu" for one in (*args, *named.values()))
            if is_read and torch._C._len_torch_dispatch_stack():
                notice(name)
            return read(tensor, *args, **named)

        return call

    with contextlib.ExitStack() as patches:
        for name in (*READS, "to"):
            patches.enter_context(patch.object(torch.Tensor, name, watched(name, getattr(torch.Tensor, name))))
        yield
