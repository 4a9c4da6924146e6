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
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from fasttune.console import FasttuneError, _, error
from fasttune.export import reference as reference_model
from fasttune.export.kept import Passage
from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base, Loras
from fasttune.export.write import ARCHITECTURE, gguf_name

CHUNK = 512  # tokens; llama.cpp counts an importance matrix's text in whole chunks
SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
LONGEST_NAME = 4096  # bytes of a tensor's or a text's name in the older layout
OWN_TEXT = "fasttune: the run's own training conversations"


@dataclass(frozen=True)
class ImportanceMatrix:
    """By tensor name as in the GGUF the mean square of each column's inputs (columns); and what the file says of the
    text that it was taken from: its name ("": nothing) and its length in chunks (0: nothing)."""

    columns: dict[str, FloatArray]
    dataset: str = ""
    chunks: int = 0


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
        writer.add_array(DATASETS, [OWN_TEXT])
        writer.add_uint32(CHUNK_COUNT, max(1, tokens // CHUNK))
        writer.add_uint32(CHUNK_SIZE, CHUNK)
        for name in sorted(sums):
            writer.add_tensor(name + SUMS, sums[name][None, :])
            writer.add_tensor(name + COUNTS, np.full((1, 1), tokens, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def load(path: Path) -> ImportanceMatrix:
    """The importance matrix in a file of either layout. Raises FasttuneError for any other file."""
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        found = from_gguf(path) if is_gguf else from_dat(path.read_bytes())
        values = found.columns.values()
        if not values or not all(np.isfinite(column).all() and column.min() >= 0 for column in values):
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


def check_fits(path: Path, importance: ImportanceMatrix, base: Base) -> None:
    """Raises FasttuneError where an importance matrix is of a model of another shape: llama.cpp would refuse it, or
    round a tensor without it."""
    names = gguf.get_tensor_name_map(ARCHITECTURE, base.shape.layers)
    matrices = {gguf_name(name, names): tensor.shape for name, tensor in base.tensors.items()
                if ".layers." in name and len(tensor.shape) == 2}  # fmt: skip
    columns = importance.columns
    unfit = [name for name, shape in matrices.items() if name not in columns or columns[name].size != shape[1]]
    if unfit:
        what = _("it is of another model: {name} and {n} more do not fit", name=unfit[0], n=len(unfit) - 1)
        fix = _('make one of this base, or take the run\'s own: export.imatrix = "own"')
        raise error("imatrix-of-another-model", what, where=str(path), fix=fix)


def from_gguf(path: Path) -> ImportanceMatrix:
    """The importance matrix in a GGUF file."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    found = {}
    for name in (name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)):
        counts = tensors[name + COUNTS].reshape(-1, 1)
        sums = tensors[name + SUMS].reshape(len(counts), -1)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), 1)  # llama.cpp takes 1 where nothing was seen
        found[name] = mean.astype(np.float32).ravel()
    said = {key: reader.fields[key].contents() for key in (DATASETS, CHUNK_COUNT) if key in reader.fields}
    datasets = said.get(DATASETS) or [""]
    return ImportanceMatrix(found, str(datasets[0]), int(said.get(CHUNK_COUNT, 0)))


def from_dat(data: bytes) -> ImportanceMatrix:
    """The importance matrix in the older layout: count, then name, calls and sums of each entry, all little-endian; the
    number of chunks and the name of the text may follow."""
    found, at = {}, 4
    (count,) = struct.unpack_from("<i", data, 0)
    if not 0 < count < 100_000:
        raise ValueError(count)
    for _number in range(count):
        name, at = text_at(data, at)
        calls, size = struct.unpack_from("<ii", data, at)
        at += 8
        if size < 0 or at + 4 * size > len(data):
            raise ValueError(name)
        found[name] = np.frombuffer(data, "<f4", size, at).astype(np.float32) / max(1, calls)
        at += 4 * size
    if at + 8 > len(data):
        return ImportanceMatrix(found)
    (chunks,) = struct.unpack_from("<i", data, at)
    return ImportanceMatrix(found, text_at(data, at + 4)[0], max(0, chunks))


def text_at(data: bytes, at: int) -> tuple[str, int]:
    """The text that stands in bytes after its length, and where it ends. Raises ValueError where none can be there."""
    (length,) = struct.unpack_from("<i", data, at)
    if not 0 < length <= min(LONGEST_NAME, len(data) - at - 4):
        raise ValueError(length)
    return data[at + 4 : at + 4 + length].decode("utf-8"), at + 4 + length
