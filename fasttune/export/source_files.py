"""The files an export reads, JSON and safetensors, with the weights read row by row.

Tensors are read through a memory map, a block of rows at a time, so a 3B model is exported on a machine that could not
load it. No torch: bfloat16 becomes float32 by shifting its bits left by 16, which is exact.

The format of safetensors: 8 bytes of length (little-endian), a JSON header, the data (huggingface/safetensors, README
"Format"). A file that can't be read is a finding, never an exception: an export lists everything that is wrong at once.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasttune.console import Finding, _

FloatArray = NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: `shape` as stored, `offset` in bytes from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> FloatArray:
        """Rows start:stop of the first dimension in float32, exact for bfloat16 and float16."""
        width, stored = math.prod(self.shape[1:]), DTYPES[self.dtype]
        first = self.offset + start * width * stored.itemsize
        raw = np.memmap(self.file, dtype=stored, mode="r", offset=first, shape=((stop - start) * width,))
        values = (raw.astype("<u4") << 16).view("<f4") if self.dtype == "BF16" else raw.astype("<f4")
        return values.reshape((stop - start, *self.shape[1:]))

    def whole(self) -> FloatArray:
        """All rows in float32."""
        return self.rows(0, self.shape[0])


def stored_bytes(tensor: Tensor) -> int:
    """The size of a tensor in its file."""
    return math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize


def read_json_object(file: Path, code: str, findings: list[Finding]) -> dict[str, Any] | None:
    """The JSON object in a file of another program; None, and a finding with this code, where there is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as failure:
        what = _("can't be read: {problem}", problem=failure.strerror)
    except (ValueError, RecursionError) as failure:
        what = _("is not JSON: {problem}", problem=failure)
    else:
        if isinstance(document, dict):
            return document
        what = _("is not a JSON object")
    findings.append(Finding(code, "error", str(file), what))
    return None


def read_safetensors(file: Path, findings: list[Finding]) -> dict[str, Tensor]:
    """{name: tensor} of a safetensors file; empty, and a finding, where the header and the file's size disagree."""
    size = file.stat().st_size
    try:
        tensors, ends = parse_header(file, size)
        known = (tensor for tensor in tensors.values() if tensor.dtype in DTYPES)
        is_whole = max(ends.values(), default=size) == size and all(
            tensor.offset + stored_bytes(tensor) == ends[tensor.name] for tensor in known
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        is_whole, tensors = False, {}
    if is_whole:
        return tensors
    what = _("is not a complete safetensors file ({size} bytes)", size=size)
    findings.append(Finding("weights-damaged", "error", str(file), what, fix=_("download or save it again")))
    return {}


def parse_header(file: Path, size: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(tensors, offset of each one's end in the file) as the header of a file of `size` bytes describes them.

    Raises whatever a header that is no safetensors header leads to: ValueError, KeyError, TypeError, AttributeError or
    IndexError.
    """
    with open(file, "rb") as opened:
        data = 8 + int.from_bytes(opened.read(8), "little")
        if data > size:
            raise ValueError(data)
        header = json.loads(opened.read(data - 8))
    header.pop("__metadata__", None)
    if not header and data != size:
        raise ValueError(data)
    tensors = {
        name: Tensor(name, file, entry["dtype"], tuple(entry["shape"]), data + entry["data_offsets"][0])
        for name, entry in header.items()
    }
    return tensors, {name: data + entry["data_offsets"][1] for name, entry in header.items()}
