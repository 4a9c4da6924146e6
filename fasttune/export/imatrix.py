"""The importance matrix: for each column of a matrix the mean square of its inputs, Σ x² / tokens.

The quantizer of llama.cpp rounds the weights of columns with large inputs more carefully. `llama-imatrix` takes it from
any text with a GGUF model; here it comes from the run's own conversations and the float32 reference, whose inputs of
every matrix pass by anyway, so that no second model is loaded.

The file is llama.cpp's (tools/imatrix): GGUF with `NAME.in_sum2` (sums of squares) and `NAME.counts` (tokens), NAME as
blk.3.ffn_up.weight; the older binary layout (.dat) is read too. libllama itself reads neither: llama_model_quantize
takes an array of names and values, which `load` gives.
"""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

from fasttune.console import FasttuneError, _, error
from fasttune.export import reference as reference_model
from fasttune.export.kept import Passage
from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base, Loras
from fasttune.export.write import ARCHITECTURE, gguf_name

CHUNK = 512  # tokens; llama.cpp counts an importance matrix's text in chunks
SUMS, COUNTS = ".in_sum2", ".counts"
Importance = dict[str, FloatArray]  # by tensor name as in the GGUF: mean square of each column's inputs


def compute(base: Base, loras: Loras, passages: tuple[Passage, ...], path: Path) -> None:
    """Write the importance matrix of the merged model on passages to `path`."""
    names = gguf.get_tensor_name_map(ARCHITECTURE, base.shape.layers)
    sums: dict[str, FloatArray] = {}

    def watch(name: str, inputs: FloatArray) -> None:
        sums[gguf_name(name, names)] = np.square(inputs).sum(axis=0, dtype=np.float64).astype(np.float32)

    layout = reference_model.lay_out([passage.tokens for passage in passages])
    reference_model.hidden_states(base, loras, layout, watch)
    write(path, sums, len(layout.ids))


def write(path: Path, sums: dict[str, FloatArray], tokens: int) -> None:
    """Write sums of squares over a number of tokens as llama-imatrix does."""
    writer = gguf.GGUFWriter(path, "")
    try:
        writer.kv_data[0].pop(gguf.Keys.General.ARCHITECTURE, None)  # llama-imatrix writes none
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["fasttune: the run's own training conversations"])
        writer.add_uint32("imatrix.chunk_count", -(-tokens // CHUNK))
        writer.add_uint32("imatrix.chunk_size", CHUNK)
        for name in sorted(sums):
            writer.add_tensor(name + SUMS, sums[name][None, :])
            writer.add_tensor(name + COUNTS, np.full((1, 1), tokens, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def load(path: Path) -> Importance:
    """The importance matrix in a file of either layout. Raises FasttuneError for any other file."""
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        found = from_gguf(path) if is_gguf else from_dat(path.read_bytes())
        if not found or not all(np.isfinite(values).all() and values.min() >= 0 for values in found.values()):
            raise ValueError(_("it holds no values, or some that are not finite"))
    except OSError as failure:
        raise not_readable(path, str(failure.strerror)) from failure
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, MemoryError) as failure:
        raise not_readable(path, _("it is no importance matrix of llama.cpp: {problem}", problem=failure)) from failure
    return found


def not_readable(path: Path, what: str) -> FasttuneError:
    """The error for a file that holds no importance matrix."""
    fix = _('make one with llama-imatrix, or take the run\'s own: export.imatrix = "own"')
    return error("imatrix-unreadable", what, where=str(path), fix=fix)


def check_fits(path: Path, importance: Importance, base: Base) -> None:
    """Raises FasttuneError where an importance matrix is of a model of another shape: llama.cpp would refuse it, or
    round a tensor without it."""
    names = gguf.get_tensor_name_map(ARCHITECTURE, base.shape.layers)
    matrices = {gguf_name(name, names): tensor.shape for name, tensor in base.tensors.items()
                if ".layers." in name and len(tensor.shape) == 2}  # fmt: skip
    unfit = [name for name, shape in matrices.items() if name not in importance or importance[name].size != shape[1]]
    if unfit:
        what = _("it is of another model: {name} and {n} more do not fit", name=unfit[0], n=len(unfit) - 1)
        fix = _('make one of this base, or take the run\'s own: export.imatrix = "own"')
        raise error("imatrix-of-another-model", what, where=str(path), fix=fix)


def from_gguf(path: Path) -> Importance:
    """The importance matrix in a GGUF file."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name in (name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)):
        counts = tensors[name + COUNTS].reshape(-1, 1)
        sums = tensors[name + SUMS].reshape(len(counts), -1)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), 1)  # llama.cpp stores 1 where nothing was seen
        found[name] = mean.astype(np.float32).ravel()
    return found


def from_dat(data: bytes) -> Importance:
    """The importance matrix in the older layout: count, then name, calls and sums of each entry, all little-endian."""
    found, at = {}, 4
    (count,) = struct.unpack_from("<i", data, 0)
    if not 0 < count < 100_000:
        raise ValueError(count)
    for _number in range(count):
        (length,) = struct.unpack_from("<i", data, at)
        if not 0 < length < 1000:
            raise ValueError(length)
        name = data[at + 4 : at + 4 + length].decode("utf-8")
        calls, size = struct.unpack_from("<ii", data, at + 4 + length)
        at += 12 + length
        if size < 0 or at + 4 * size > len(data):
            raise ValueError(name)
        found[name] = np.frombuffer(data, "<f4", size, at).astype(np.float32) / max(1, calls)
        at += 4 * size
    return found
