"""F16 GGUF to a K-quant GGUF by llama.cpp's own quantizer, in a child process.

llama_model_quantize decides which tensor gets which type, so the mix is llama.cpp's. It runs in a child process because
it may abort its process on a broken input and takes much memory. The child's log says how far it is, and its last line
why it failed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf

import fasttune
from fasttune.console import _, error
from fasttune.export import imatrix
from fasttune.export.imatrix import ImportanceMatrix
from fasttune.export.llama import library, thread_count
from fasttune.training.progress import ByteLine

# Quantization type -> enum llama_ftype of llama.h. F16, BF16 and Q8_0 are written directly (write.py).
K_TYPES = {
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
    "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30,
}  # fmt: skip
CHILD = "import sys; from fasttune.export.quantize import child; sys.exit(child(*sys.argv[1:]))"
# A tensor's line of the quantizer's log, which ends when the tensor is written: [   1/ 290]  token_embd.weight - […
DONE = re.compile(r"\[ *\d+/ *\d+\] +(?P<name>\S+) ")
BUFFER_BYTES = 64 << 20
BLOCK = 256  # weights of a row that share the scales of a K-quant or IQ4_XS
KEY_TEXT_BYTES = 127  # of llama_model_kv_override.val_str, which ends with a zero


def quantize(source: Path, target: Path, quantization: str, importance: Path | None = None) -> None:
    """Write the F16 file `source` as `target` in a quantization type, a key of K_TYPES, with the importance matrix in a
    file where one is given.

    Raises FasttuneError with llama.cpp's reason where it can't.
    """
    package_parent = str(Path(fasttune.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(target), quantization, str(importance or "")],
        # Safe: a folder "fasttune" of another version in the current directory would be imported first.
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    with child:
        try:
            last = follow(child.stderr or (), source, target.name.removesuffix(".part"))
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        reason = last or _("it ended with status {status}", status=child.returncode)
        raise error("quantize-failed", _("llama.cpp could not quantize: {reason}", reason=reason), where=quantization)


def follow(log: Iterable[str], source: Path, name: str) -> str:
    """Show how many bytes of the file `source` are quantized while llama.cpp's log names one tensor after the other;
    the last line of the log, which is the reason of a failure."""
    last = ""
    sizes = tensor_bytes(source)
    with ByteLine(name, sum(sizes.values())) as progress:
        for text in filter(str.strip, log):
            last = text.strip()
            if found := DONE.match(text):
                progress.advance(sizes.pop(found["name"], 0))
    return last


def tensor_bytes(path: Path) -> dict[str, int]:
    """The bytes of each tensor of a GGUF file; none of a file that is no GGUF, which llama.cpp will say."""
    try:
        return {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    except ValueError:
        return {}


def child(source: str, target: str, quantization: str, importance: str) -> int:
    """As `main` in a process of its own, in which llama.cpp's log goes to stderr."""
    lib = library()
    lib.llama_log_set(stderr_log(), ctypes.c_void_p(0))
    return main(source, target, quantization, importance)


@functools.cache
def stderr_log() -> Any:
    """The C callback that writes to stderr; cached, because libllama calls it for as long as the process lives."""

    def write(level: int, text: bytes, user_data: Any) -> None:
        sys.stderr.write(text.decode("utf-8", errors="replace"))
        sys.stderr.flush()

    return library().llama_log_callback(write)


def main(source: str, target: str, quantization: str, importance: str = "") -> int:
    """Quantize in this process; 0, or 1 where llama.cpp can't, which its log says why."""
    lib = library()
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = K_TYPES[quantization]
    settings.nthread = thread_count()
    settings.max_buf_size = BUFFER_BYTES
    if importance:
        matrix = imatrix.load(Path(importance))
        entries = imatrix_entries(lib, matrix)
        keys = imatrix_keys(lib, Path(importance).name.removesuffix(".part"), matrix)
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(lib.llama_model_imatrix_data))
        settings.kv_overrides = ctypes.cast(keys, ctypes.POINTER(lib.llama_model_kv_override))
    return int(lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(settings)) != 0)


def imatrix_entries(lib: ModuleType, matrix: ImportanceMatrix) -> Any:
    """An importance matrix as llama_model_quantize takes it; its values must outlive the array."""
    entries = (lib.llama_model_imatrix_data * (len(matrix.columns) + 1))()  # the last one, without a name, ends it
    for entry, (name, values) in zip(entries, matrix.columns.items(), strict=False):
        entry.name, entry.size = name.encode("utf-8"), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def imatrix_keys(lib: ModuleType, name: str, matrix: ImportanceMatrix) -> Any:
    """What the file will say of the importance matrix that it was made with, in the keys of llama-quantize; of the file
    `name` alone, as its folder is nobody's business."""
    given: dict[str, str | int] = {"file": name, "dataset": matrix.dataset, "entries_count": len(matrix.columns),
                                   "chunks_count": matrix.chunks}  # fmt: skip
    said = {f"quantize.imatrix.{key}": value for key, value in given.items() if value}
    keys = (lib.llama_model_kv_override * (len(said) + 1))()  # the last one, without a key, ends the array
    for entry, (key, value) in zip(keys, said.items(), strict=False):
        entry.key = key.encode("ascii")
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            entry.tag, entry.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, cut(value, KEY_TEXT_BYTES)
    return keys


def cut(text: str, most: int) -> bytes:
    """A text in UTF-8, its end left out where it takes more than so many bytes; no character is split."""
    return text.encode("utf-8")[:most].decode("utf-8", errors="ignore").encode("utf-8")


@dataclass(frozen=True)
class Stored:
    """What a GGUF file really is: how many matrices are stored in each type, the most frequent first; the bits a weight
    takes, norms and biases included, as llama-quantize counts them; and of `types` those matrices that only such a type
    can hold, as their rows are no multiple of BLOCK."""

    types: dict[str, int]
    bits_per_weight: float
    short_rows: dict[str, int]


def stored(path: Path) -> Stored:
    """What a GGUF file holds; reads no weights."""
    tensors = gguf.GGUFReader(path).tensors
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / sum(int(tensor.n_elements) for tensor in tensors)
    return Stored(count_types(matrices), bits, count_types([one for one in matrices if int(one.shape[0]) % BLOCK]))


def fallback_types(quantization: str, found: Stored) -> dict[str, int]:
    """The types that llama.cpp took in the place of K-quants for the short rows of a file of this quantization type."""
    if quantization not in K_TYPES:
        return {}
    return {name: count for name, count in found.short_rows.items() if name != quantization.upper()}  # IQ4_NL's own


def count_types(tensors: Sequence[gguf.ReaderTensor]) -> dict[str, int]:
    """How many tensors are stored in each type, the most frequent first: {"Q5_0": 132, "Q8_0": 13}."""
    return dict(Counter(tensor.tensor_type.name for tensor in tensors).most_common())
