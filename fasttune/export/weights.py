"""What is read: a Qwen2 base in safetensors and a LoRA adapter, and the one place where the two are merged.

    base/config.json, model.safetensors (or shards + index)  ─► Base: Shape + {tensor name: Tensor}
    adapter/adapter_config.json, adapter_model.safetensors   ─► {tensor name: Lora}
    merged_rows(tensor, lora, start, stop)                   =  W[start:stop] + scale * (B[start:stop] @ A), float32

Tensors are read row by row through a memory map: nothing here ever holds a whole model, so a 3B model is exported on a
machine that could not load it. No torch: bfloat16 becomes float32 by shifting its bits, which is exact.

The format of safetensors: 8 bytes length, a JSON header, the data (huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasttune.console import Finding, _

FloatArray = NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
BLOCK_BYTES = 16 << 20
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# Settings of a LoRA adapter that change the weights in another way than W + scale * B @ A, or change the base itself.
UNMERGEABLE = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: `shape` as stored, `offset` in bytes from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> FloatArray:
        """Rows start:stop (of the first dimension) in float32, exact for bfloat16 and float16."""
        width, stored = math.prod(self.shape[1:]), DTYPES[self.dtype]
        first = self.offset + start * width * stored.itemsize
        raw = np.memmap(self.file, dtype=stored, mode="r", offset=first, shape=((stop - start) * width,))
        values = (raw.astype("<u4") << 16).view("<f4") if self.dtype == "BF16" else raw.astype("<f4")
        return values.reshape((stop - start, *self.shape[1:]))

    def whole(self) -> FloatArray:
        """All of it in float32."""
        return self.rows(0, self.shape[0])


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen2 config.json that decide what the weights mean."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    rope_theta: float
    norm_epsilon: float
    tied: bool

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Base:
    """A local Hugging Face folder of 16-bit or 32-bit Qwen2 weights."""

    folder: Path
    config: dict[str, Any]
    shape: Shape
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Lora:
    """One adapted weight: `a` (r, in), `b` (out, r), and what B @ A is multiplied by."""

    a: Tensor
    b: Tensor
    scale: float


Loras = Mapping[str, Lora]


def merged_rows(tensor: Tensor, lora: Lora | None, start: int, stop: int) -> FloatArray:
    """Rows start:stop of a weight as it is after the merge, in float32: what PEFT's merge computes for plain LoRA."""
    values = tensor.rows(start, stop)
    if lora is None:
        return values
    return values + np.float32(lora.scale) * (lora.b.rows(start, stop) @ lora.a.whole())


def merged_blocks(tensor: Tensor, lora: Lora | None) -> Iterator[FloatArray]:
    """The merged weight in blocks of whole rows, each about 16 MB of float32."""
    step = max(1, BLOCK_BYTES // (4 * math.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
        yield merged_rows(tensor, lora, start, min(start + step, tensor.shape[0]))


# The base ------------------------------------------------------------------------------------------------------------


def read_base(folder: Path, problems: list[Finding]) -> Base | None:
    """The base in a folder; every reason against exporting it is added to `problems` (None where it can't be read)."""
    config = read_document(folder / "config.json", "base-unreadable", problems)
    if config is None:
        return None
    shape = read_shape(folder, config, problems)
    tensors = read_weights(folder, problems)
    if shape is None or not tensors:
        return None
    check_tensors(folder, shape, tensors, problems)
    return Base(folder, config, shape, tensors)


def read_shape(folder: Path, config: dict[str, Any], problems: list[Finding]) -> Shape | None:
    """The shape in a config.json; None where it isn't one of Qwen2."""
    where = str(folder / "config.json")
    if config.get("model_type") != "qwen2":
        what = _("model_type is {found}, export writes qwen2 only", found=repr(config.get("model_type")))
        fix = _("choose a Qwen2 or Qwen2.5 base as model.base")
        problems.append(Finding("base-not-qwen2", "error", where, what, fix=fix))
        return None
    problems += [Finding("base-unsupported", "error", where, what) for what in unsupported(config)]
    # transformers 4 keeps rope_theta at the top level, transformers 5 inside rope_parameters.
    rope = config.get("rope_parameters") or {}
    try:
        return Shape(
            hidden=int(config["hidden_size"]),
            inner=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
            vocab=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as problem:
        what = _("a number is missing or isn't one: {problem}", problem=problem)
        problems.append(Finding("base-unreadable", "error", where, what))
        return None


def unsupported(config: dict[str, Any]) -> Iterator[str]:
    """What a Qwen2 config asks for that the GGUF would not do."""
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or []):
        yield _("sliding window attention is on; llama.cpp runs Qwen2 with full attention only")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "?")
        yield _("the weights are quantized ({method}); merge onto the 16-bit base instead", method=method)
    if config.get("hidden_act", "silu") != "silu":
        yield _("hidden_act is {found}, llama.cpp computes silu", found=repr(config["hidden_act"]))
    for rope in (config.get("rope_scaling") or {}, config.get("rope_parameters") or {}):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            yield _("rope scaling {kind} is set; export supports the default rope only", kind=repr(kind))
    heads = config.get("num_attention_heads") or 1
    size = (config.get("hidden_size") or 0) // heads
    if (config.get("head_dim") or size) != size:
        yield _("head_dim is not hidden_size / num_attention_heads")


def read_weights(folder: Path, problems: list[Finding]) -> dict[str, Tensor]:
    """All tensors of a model folder by name: one model.safetensors, or the shards its index names."""
    index = folder / "model.safetensors.index.json"
    files = {folder / "model.safetensors"}
    if index.is_file():
        document = read_document(index, "weights-damaged", problems) or {}
        files = {folder / str(name) for name in document.get("weight_map", {}).values()}
    missing = sorted(file for file in files if not file.is_file())
    if missing or not files:
        names = ", ".join(file.name for file in missing) or index.name
        fix = _("a local folder with safetensors weights is needed; .bin and .gguf files can't be exported")
        problems.append(Finding("weights-missing", "error", str(folder), _("no {names}", names=names), fix=fix))
        return {}
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        tensors.update(read_safetensors(file, problems))
    return tensors


def check_tensors(folder: Path, shape: Shape, tensors: dict[str, Tensor], problems: list[Finding]) -> None:
    """Every tensor a Qwen2 of this shape has must be there in its shape, and none that would be lost."""
    expected = expected_tensors(shape)
    unknown = [name for name in tensors if name not in expected and not ignorable(name, shape)]
    absent = [name for name in expected if name not in tensors]
    wrong = [name for name in expected if name in tensors and tensors[name].shape != expected[name]]
    stored = [name for name in expected if name in tensors and tensors[name].dtype not in DTYPES]
    complaints = (
        (absent, _("tensors are missing")),
        (wrong, _("tensors do not have the shape that config.json gives them")),
        (stored, _("tensors are not float16, bfloat16 or float32 (a quantized model can't be exported)")),
        (unknown, _("tensors are not part of a Qwen2 model")),
    )
    for names, what in complaints:
        if names:
            problems.append(Finding("weights-do-not-fit", "error", str(folder), f"{what}: {first_few(names)}"))


def first_few(names: Sequence[str]) -> str:
    """Names for a message: all of them up to three, else three and their number."""
    listed = ", ".join(sorted(names)[:3])
    return listed if len(names) <= 3 else _("{names} … ({count} in all)", names=listed, count=len(names))


def ignorable(name: str, shape: Shape) -> bool:
    """A stored output head of a tied model is the embedding again; rotary buffers are computed."""
    return (shape.tied and name == HEAD) or name.endswith("rotary_emb.inv_freq")


def expected_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of a Qwen2ForCausalLM, in the order in which they are written."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (queries, shape.hidden),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, shape.hidden),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, shape.hidden),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (shape.hidden, queries),
        "post_attention_layernorm.weight": (shape.hidden,),
        "mlp.gate_proj.weight": (shape.inner, shape.hidden),
        "mlp.up_proj.weight": (shape.inner, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.inner),
    }
    names: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden)}
    for number in range(shape.layers):
        names |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    names[FINAL_NORM] = (shape.hidden,)
    if not shape.tied:
        names[HEAD] = (shape.vocab, shape.hidden)
    return names


# The adapter ---------------------------------------------------------------------------------------------------------


def read_adapter(folder: Path, base: Base | None, problems: list[Finding]) -> dict[str, Lora]:
    """The LoRA of every adapted weight of the base, by the weight's name; reasons against it go to `problems`."""
    config = read_document(folder / "adapter_config.json", "adapter-unreadable", problems)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        what = _("no {names}", names=file.name)
        problems.append(Finding("adapter-unreadable", "error", str(folder), what, fix=_("give the folder PEFT saved")))
    if config is None or not file.is_file():
        return {}
    refused = list(unmergeable(config))
    if refused:
        fix = _("train with plain LoRA, or merge it with PEFT in full precision and export the merged model as base")
        where = str(folder / "adapter_config.json")
        problems += [Finding("adapter-not-mergeable", "error", where, what, fix=fix) for what in refused]
        return {}
    tensors = read_safetensors(file, problems)
    return pair_loras(file, config, tensors, base, problems) if base is not None else {}


def unmergeable(config: dict[str, Any]) -> Iterator[str]:
    """What an adapter holds beside LoRA matrices."""
    if config.get("peft_type") != "LORA":
        yield _("peft_type is {found}, only LORA can be merged here", found=repr(config.get("peft_type")))
    for key in UNMERGEABLE:
        if config.get(key):
            yield _("{key} is set ({value}): this is more than a low-rank update", key=key, value=config[key])
    if config.get("bias", "none") != "none":
        yield _("bias is {found}: the adapter trained biases too", found=repr(config["bias"]))
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_INITS):
        yield _("init_lora_weights is {found}, which changes the base itself", found=repr(start))


def pair_loras(
    file: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: Base, problems: list[Finding]
) -> dict[str, Lora]:
    """Lora matrices paired and checked against the base; every tensor of the file has to be part of a pair."""
    layers = {name for name in expected_tensors(base.shape) if "_proj.weight" in name}
    loras: dict[str, Lora] = {}
    strange = []
    for name in sorted(tensors):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if f"{module}.weight" not in layers or not name.endswith(".lora_A.weight"):
            if not (name.endswith(".lora_B.weight") and name.replace(".lora_B.", ".lora_A.") in tensors):
                strange.append(name)
            continue
        other = tensors.get(name.replace(".lora_A.", ".lora_B."))
        target = base.tensors.get(f"{module}.weight")
        rank, scale = rank_and_scale(config, module)
        fits = other is not None and target is not None and tensors[name].shape == (rank, target.shape[1])
        if other is None or target is None or not fits or other.shape != (target.shape[0], rank):
            strange.append(name)
            continue
        loras[f"{module}.weight"] = Lora(tensors[name], other, scale)
    if strange or not loras:
        what = _("the adapter holds no LoRA matrices")
        if strange:
            what = _("tensors do not fit this base: {names}", names=first_few(strange))
        why = _("only attention and MLP projections can be merged, in the base the adapter was trained on")
        problems.append(Finding("adapter-does-not-fit", "error", str(file), what, why=why))
    return loras


def rank_and_scale(config: dict[str, Any], module: str) -> tuple[int, float]:
    """(r, what B @ A is multiplied by) of a module: alpha / r, or alpha / sqrt(r) with rsLoRA.

    Patterns as PEFT reads them: peft.utils.other.get_pattern_key and LoraLayer.update_layer.
    """
    rank = int(by_pattern(config.get("rank_pattern") or {}, module, config["r"]))
    alpha = float(by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def by_pattern(patterns: dict[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name."""
    matches = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matches, otherwise)


# Files ---------------------------------------------------------------------------------------------------------------


def read_document(file: Path, code: str, problems: list[Finding]) -> dict[str, Any] | None:
    """A JSON object from a file; where it can't be had, one problem and None."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        what = _("can't be read: {problem}", problem=problem.strerror)
    except ValueError as problem:
        what = _("is not JSON: {problem}", problem=problem)
    else:
        if isinstance(document, dict):
            return document
        what = _("is not a JSON object")
    problems.append(Finding(code, "error", str(file), what))
    return None


def read_safetensors(file: Path, problems: list[Finding]) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name; a file whose header and size disagree is a problem, not an exception."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if 8 + length <= size else {}
        header.pop("__metadata__", None)
        tensors = {
            name: Tensor(name, file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items()}
        known = (tensor for tensor in tensors.values() if tensor.dtype in DTYPES)
        whole = max(ends.values(), default=8 + length) == size and all(
            end_of(tensor) == ends[tensor.name] for tensor in known
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        whole, tensors = False, {}
    if not whole:
        what = _("is not a whole safetensors file ({size} bytes)", size=size)
        fix = _("download or save it again")
        problems.append(Finding("weights-damaged", "error", str(file), what, fix=fix))
        return {}
    return tensors


def end_of(tensor: Tensor) -> int:
    """Where a tensor ends in its file."""
    return tensor.offset + stored_bytes(tensor)


def stored_bytes(tensor: Tensor) -> int:
    """Size of a tensor in its file."""
    return math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize
