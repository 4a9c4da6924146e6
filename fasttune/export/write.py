"""Merged weights into one GGUF file, F16 or Q8_0, streamed: no merged checkpoint on disk, no whole model in memory.

    Base + Loras ─ merged_blocks (float32) ─► float16 or Q8_0 bytes ─► GGUF

Keys and tensors are those of llama.cpp's convert_hf_to_gguf.py for qwen2: matrices in the file's type, norms and biases
in float32, a tied output head left out. Q8_0 goes through float16 first and is quantized by the `gguf` package, so its
bytes are those llama.cpp's own quantizer makes from the F16 file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import gguf
import numpy as np
from gguf import quants

from fasttune.console import _, error
from fasttune.export.serving import FileSampling
from fasttune.export.source_files import FloatArray, Tensor
from fasttune.export.vocabulary import Vocabulary
from fasttune.export.weights import (
    Base,
    Lora,
    Loras,
    Shape,
    expected_tensors,
    merged_blocks,
)

Encoding = Literal["F32", "F16", "Q8_0"]
FILE_TYPES = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
ENCODINGS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
ARCHITECTURE = gguf.MODEL_ARCH.QWEN2
LARGEST_FLOAT16 = 65504.0
# The quantization types of a recipe that are written here; all others are made from F16 by llama.cpp (quantize.py).
WRITTEN_TYPES: dict[str, Encoding] = {"f16": "F16", "q8_0": "Q8_0"}


@dataclass(frozen=True)
class Metadata:
    """What a GGUF says of itself: its name, the run it comes from, the chat template for its prompts, and how tokens
    are best sampled."""

    name: str
    run_id: str
    chat_template: str
    sampling: FileSampling = field(default_factory=dict)


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the file to be written. GGUFWriter takes it for an array: it reads `nbytes` and calls `tofile`."""

    tensor: Tensor
    lora: Lora | None
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return encoded_bytes(math.prod(self.tensor.shape), self.encoding)

    def tofile(self, file: BinaryIO) -> None:
        """Merge, encode and write block by block.

        Raises FasttuneError where a merged weight is NaN, infinite, or too large for float16.
        """
        for block in merged_blocks(self.tensor, self.lora):
            check_finite(self.tensor.name, block, math.inf if self.encoding == "F32" else LARGEST_FLOAT16)
            file.write(encode(block, self.encoding))


def write_gguf(
    path: Path, base: Base, loras: Loras, vocabulary: Vocabulary, metadata: Metadata, encoding: Encoding
) -> None:
    """Write the merged model to `path`, a partial file that the caller renames or removes, in one pass.

    Raises FasttuneError for weights that can't be stored, OSError where the disk or the folder does not take the file.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    names = gguf.get_tensor_name_map(ARCHITECTURE, base.shape.layers)
    try:
        tensors = [
            MergedTensor(base.tensors[name], loras.get(name), tensor_encoding(size, encoding))
            for name, size in expected_tensors(base.shape).items()
        ]
        for merged in tensors:
            name, stored = gguf_name(merged.tensor.name, names), ENCODINGS[merged.encoding]
            writer.add_tensor_info(name, merged.tensor.shape, np.dtype(np.float32), merged.nbytes, raw_dtype=stored)
        add_model_keys(writer, base.shape, metadata, encoding)
        add_tokenizer_keys(writer, vocabulary, metadata.chat_template)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for merged in tensors:
            # GGUFWriter's type is a numpy array; a MergedTensor does what it needs of one without being in memory.
            writer.write_tensor_data(cast(Any, merged))
    finally:
        writer.close()


def written_bytes(shape: Shape, encoding: Encoding) -> int:
    """Bytes of all tensors of a file in this encoding; the keys with the vocabulary come on top."""
    sizes = expected_tensors(shape).values()
    return sum(encoded_bytes(math.prod(size), tensor_encoding(size, encoding)) for size in sizes)


def gguf_name(name: str, names: gguf.TensorNameMap) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight. Raises KeyError for a tensor llama.cpp doesn't know."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise KeyError(name)
    return str(found)


def tensor_encoding(size: tuple[int, ...], encoding: Encoding) -> Encoding:
    """The encoding of one tensor in a file of `encoding`.

    As in llama.cpp, vectors are float32, and matrices whose rows Q8_0's blocks of 32 values don't divide are float16.
    """
    if len(size) == 1:
        return "F32"
    return "F16" if encoding == "Q8_0" and size[-1] % 32 else encoding


def encoded_bytes(values: int, encoding: Encoding) -> int:
    """Bytes that a number of values takes; a multiple of the encoding's block."""
    block, size = gguf.GGML_QUANT_SIZES[ENCODINGS[encoding]]
    return values // block * size


def encode(block: FloatArray, encoding: Encoding) -> bytes:
    """The bytes of a block of float32 rows in the file."""
    if encoding == "F32":
        return block.astype("<f4", copy=False).tobytes()
    float16 = block.astype("<f2")
    if encoding == "F16":
        return float16.tobytes()
    return quants.quantize(float16.astype(np.float32), gguf.GGMLQuantizationType.Q8_0).tobytes()


def check_finite(name: str, block: FloatArray, largest: float) -> None:
    """Raises FasttuneError where a value is NaN or its magnitude is above `largest`.

    llama.cpp loads a file with NaN in it without a warning, so no such file may be written.
    """
    if bool(np.isfinite(block).all()) and float(np.abs(block).max()) <= largest:
        return
    what = _("a merged weight is not finite or too large for float16")
    why = _("the base or the adapter is damaged, or training diverged")
    raise error("weights-not-finite", what, where=name, why=why, fix=_("look at the losses of the run; train again"))


def add_model_keys(writer: gguf.GGUFWriter, shape: Shape, metadata: Metadata, encoding: Encoding) -> None:
    """Add general.* and qwen2.*: what the file is, and the numbers of the architecture."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(metadata.name)
    writer.add_string("fasttune.run_id", metadata.run_id)
    for name, value in metadata.sampling.items():
        getattr(writer, f"add_sampling_{name}")(value)
    total, shared, expert, experts = writer.get_total_parameter_count()
    writer.add_size_label(gguf.size_label(total, shared, expert, experts))
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_file_type(FILE_TYPES[encoding])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer_keys(writer: gguf.GGUFWriter, vocabulary: Vocabulary, chat_template: str) -> None:
    """Add tokenizer.*: the vocabulary and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template)
