"""Reads a Qwen2 base, a local Hugging Face folder of safetensors weights; reasons against exporting it are findings.

base/config.json, model.safetensors (or shards with an index) ─► Base: Shape and {tensor name: Tensor}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fasttune.console import Finding, _
from fasttune.export.source_files import DTYPES, Tensor, read_json_object, read_safetensors
from fasttune.export.weights import LM_HEAD, Base, Shape, expected_tensors, first_names

# Far above any Qwen2: Qwen2.5-72B has 8192, 29568, 80, 64, 8, 152064 and 131072.
MOST = {
    "hidden_size": 2**16,
    "intermediate_size": 2**19,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1000,
    "num_key_value_heads": 1000,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**24,
}


def read_base(folder: Path, findings: list[Finding]) -> Base | None:
    """The base in a folder; None where it can't be read. Every reason against exporting it is added to `findings`."""
    config = read_json_object(folder / "config.json", "base-unreadable", findings)
    if config is None:
        return None
    shape = read_shape(folder, config, findings)
    tensors = read_tensors(folder, findings)
    if shape is None or not tensors:
        return None
    check_tensors(folder, shape, tensors, findings)
    return Base(folder, config, shape, tensors)


def read_shape(folder: Path, config: dict[str, Any], findings: list[Finding]) -> Shape | None:
    """The shape in a config.json; None, and a finding, where it isn't one of Qwen2."""
    where = str(folder / "config.json")
    if config.get("model_type") != "qwen2":
        what = _("model_type is {found}, export writes qwen2 only", found=repr(config.get("model_type")))
        fix = _("choose a Qwen2 or Qwen2.5 base as model.base")
        findings.append(Finding("base-not-qwen2", "error", where, what, fix=fix))
        return None
    try:
        unfit = [Finding("base-unsupported", "error", where, what) for what in unsupported(config)]
        shape = shape_of(config)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as failure:
        what = _("a value is missing or not what transformers writes: {problem}", problem=failure)
        fix = _("take config.json from the model as published")
        findings.append(Finding("base-unreadable", "error", where, what, fix=fix))
        return None
    findings += unfit
    return shape


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json of Qwen2 gives. Raises KeyError, TypeError or ValueError for a number that it lacks,
    or that no Qwen2 has: tables and lists as long as a number says are made before any weight is read."""
    # transformers 4 keeps rope_theta at the top level, transformers 5 inside rope_parameters.
    rope = config.get("rope_parameters") or {}
    heads = size(config, "num_attention_heads")
    return Shape(
        hidden_size=size(config, "hidden_size"),
        intermediate_size=size(config, "intermediate_size"),
        layers=size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=size(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads,
        vocab_size=size(config, "vocab_size"),
        context_length=size(config, "max_position_embeddings"),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def size(config: dict[str, Any], key: str) -> int:
    """A size in a config.json, from 1 to MOST[key]. Raises KeyError, TypeError or ValueError for anything else."""
    value = config[key]
    if type(value) is not int:
        raise TypeError(f"{key} = {value!r:.40}")
    if not 0 < value <= MOST[key]:
        raise ValueError(f"{key} = {value:.3g}" if abs(value) < 10**300 else key)
    return value


def unsupported(config: dict[str, Any]) -> Iterator[str]:
    """What a Qwen2 config asks for that llama.cpp would not compute."""
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or []):
        yield _("sliding window attention is on; llama.cpp runs Qwen2 with full attention only")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "?")
        yield _("the weights are quantized ({method}); merge onto the 16-bit base instead", method=method)
    if config.get("hidden_act", "silu") != "silu":
        yield _("hidden_act is {found}, llama.cpp computes silu", found=repr(config["hidden_act"]))
    for rope in (config.get("rope_scaling") or {}, config.get("rope_parameters") or {}):
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            yield _("rope scaling {kind} is set; export supports the default rope only", kind=repr(rope_type))
    head_dim = size(config, "hidden_size") // size(config, "num_attention_heads")
    if (config.get("head_dim") or head_dim) != head_dim:
        yield _("head_dim is not hidden_size / num_attention_heads")


def read_tensors(folder: Path, findings: list[Finding]) -> dict[str, Tensor]:
    """{name: tensor} of a model folder: of its model.safetensors, or of the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    files = {folder / "model.safetensors"}
    if index.is_file():
        document = read_json_object(index, "weights-damaged", findings) or {}
        files = {folder / str(name) for name in document.get("weight_map", {}).values()}
    missing = sorted(file for file in files if not file.is_file())
    if missing or not files:
        names = ", ".join(file.name for file in missing) or index.name
        fix = _("a local folder with safetensors weights is needed; .bin and .gguf files can't be exported")
        findings.append(Finding("weights-missing", "error", str(folder), _("no {names}", names=names), fix=fix))
        return {}
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        tensors.update(read_safetensors(file, findings))
    return tensors


def check_tensors(folder: Path, shape: Shape, tensors: dict[str, Tensor], findings: list[Finding]) -> None:
    """Find tensors that a Qwen2 of this shape needs and the folder lacks, and tensors that the export would lose."""
    expected = expected_tensors(shape)
    present = [name for name in expected if name in tensors]
    checks = (
        ([name for name in expected if name not in tensors], _("tensors are missing")),
        (
            [name for name in present if tensors[name].shape != expected[name]],
            _("tensors do not have the shape that config.json gives them"),
        ),
        (
            [name for name in present if tensors[name].dtype not in DTYPES],
            _("tensors are not float16, bfloat16 or float32 (a quantized model can't be exported)"),
        ),
        (
            [name for name in tensors if name not in expected and not is_redundant(name, shape)],
            _("tensors are not part of a Qwen2 model"),
        ),
    )
    for names, what in checks:
        if names:
            findings.append(Finding("weights-do-not-fit", "error", str(folder), f"{what}: {first_names(names)}"))


def is_redundant(name: str, shape: Shape) -> bool:
    """Whether a stored tensor adds nothing: the output head of a tied model is its embedding, and rotary buffers are
    computed."""
    return (shape.tied_embeddings and name == LM_HEAD) or name.endswith("rotary_emb.inv_freq")
