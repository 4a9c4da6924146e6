"""Merged weights into one GGUF file, F16 or Q8_0, streamed: no merged checkpoint on disk, no whole model in memory.

    Base + Loras ─ merged_blocks (float32) ─► float16 or Q8_0 bytes ─► GGUF

Keys and tensors are those of llama.cpp's convert_hf_to_gguf.py for qwen2: matrices in the file's type, norms and biases
in float32, a tied output head left out. Q8_0 goes through float16 first and is quantized by the `gguf` package, so its
bytes are those llama.cpp's own quantizer makes from the F16 file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import gguf
import numpy as np
from gguf import quants

from fasttune.console import _, error
from fasttune.export.vocabulary import Vocabulary
from fasttune.export.weights import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Base,
    FloatArray,
    Lora,
    Loras,
    Shape,
    Tensor,
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
LARGEST_FLOAT16 = 65504.0
NAMES = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Labels:
    """What a GGUF says of itself: its name, the run it comes from and the chat template it is to be asked with."""

    name: str
    run_id: str
    chat_template: str


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the file to be; GGUFWriter asks it for its size and has it write itself."""

    tensor: Tensor
    lora: Lora | None
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        return encoded_bytes(math.prod(self.tensor.shape), self.encoding)

    def tofile(self, file: BinaryIO) -> None:
        """Raises FasttuneError where a merged weight is NaN, infinite, or too large for float16."""
        for block in merged_blocks(self.tensor, self.lora):
            check_finite(self.tensor.name, block, math.inf if self.encoding == "F32" else LARGEST_FLOAT16)
            file.write(encode(block, self.encoding))


def write_gguf(
    path: Path, base: Base, loras: Loras, vocabulary: Vocabulary, labels: Labels, encoding: Encoding
) -> None:
    """Write the merged model to `path` in one pass; the caller renames and removes.

    Raises FasttuneError for weights that can't be stored, OSError where the disk refuses.
    """
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        tensors = [
            MergedTensor(base.tensors[name], loras.get(name), tensor_encoding(size, encoding))
            for name, size in expected_tensors(base.shape).items()
        ]
        for merged in tensors:
            name, kind = gguf_name(merged.tensor.name), ENCODINGS[merged.encoding]
            writer.add_tensor_info(name, merged.tensor.shape, np.dtype(np.float32), merged.nbytes, raw_dtype=kind)
        add_model_keys(writer, base.shape, labels, encoding)
        add_tokenizer_keys(writer, vocabulary, labels.chat_template)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for merged in tensors:
            # It asks an array for its size and to write itself; this one does both without being held in memory.
            writer.write_tensor_data(cast(Any, merged))
    finally:
        writer.close()


def written_bytes(shape: Shape, encoding: Encoding) -> int:
    """Size of all tensors of a file of this encoding; the header with the vocabulary comes on top."""
    sizes = expected_tensors(shape).values()
    return sum(encoded_bytes(math.prod(size), tensor_encoding(size, encoding)) for size in sizes)


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    if name in NAMES:
        return NAMES[name]
    number, _dot, rest = name.removeprefix("model.layers.").partition(".")
    module, _dot, kind = rest.rpartition(".")
    return f"blk.{number}.{LAYER_NAMES[module]}.{kind}"


def tensor_encoding(size: tuple[int, ...], encoding: Encoding) -> Encoding:
    """Vectors stay float32; rows that Q8_0's blocks of 32 don't divide stay float16, as llama.cpp has it."""
    if len(size) == 1:
        return "F32"
    return "F16" if encoding == "Q8_0" and size[-1] % 32 else encoding


def encoded_bytes(values: int, encoding: Encoding) -> int:
    """Bytes of so many values."""
    block, size = gguf.GGML_QUANT_SIZES[ENCODINGS[encoding]]
    return values // block * size


def encode(block: FloatArray, encoding: Encoding) -> bytes:
    """Rows of float32 as they lie in the file."""
    if encoding == "F32":
        return block.astype("<f4", copy=False).tobytes()
    half = block.astype("<f2")
    if encoding == "F16":
        return half.tobytes()
    return quants.quantize(half.astype(np.float32), gguf.GGMLQuantizationType.Q8_0).tobytes()


def check_finite(name: str, block: FloatArray, limit: float) -> None:
    """llama.cpp loads a file with NaN in it without a word, so it must not come to be."""
    if bool(np.isfinite(block).all()) and float(np.abs(block).max()) <= limit:
        return
    what = _("a merged weight is not finite or too large for float16")
    why = _("the base or the adapter is damaged, or training diverged")
    raise error("weights-not-finite", what, where=name, why=why, fix=_("look at the losses of the run; train again"))


def add_model_keys(writer: gguf.GGUFWriter, shape: Shape, labels: Labels, encoding: Encoding) -> None:
    """The keys of a model: what it is and the numbers of its architecture."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(labels.name)
    writer.add_string("fasttune.run_id", labels.run_id)
    total, shared, expert, experts = writer.get_total_parameter_count()
    writer.add_size_label(gguf.size_label(total, shared, expert, experts))
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_file_type(FILE_TYPES[encoding])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer_keys(writer: gguf.GGUFWriter, vocabulary: Vocabulary, chat_template: str) -> None:
    """The keys of the tokenizer, chat template included."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)
