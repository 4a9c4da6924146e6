"""Reads a PEFT adapter folder and pairs its LoRA matrices. Every reason against merging it is a finding.

adapter/adapter_config.json, adapter_model.safetensors ─► {name of the base's weight: Lora}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fasttune.console import Finding, _
from fasttune.export.source_files import Tensor, read_json_object, read_safetensors
from fasttune.export.weights import Base, Lora, expected_tensors, first_names

# Settings of a LoRA adapter that change the weights in another way than W + scale * B @ A, or change the base itself.
UNMERGEABLE = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


def read_adapter(folder: Path, base: Base | None, findings: list[Finding]) -> dict[str, Lora]:
    """{name of the base's weight: Lora}; empty where the adapter can't be merged, with the reasons in `findings`."""
    config = read_json_object(folder / "adapter_config.json", "adapter-unreadable", findings)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        what, fix = _("no {names}", names=file.name), _("give the folder PEFT saved")
        findings.append(Finding("adapter-unreadable", "error", str(folder), what, fix=fix))
    if config is None or not file.is_file():
        return {}
    reasons = list(unmergeable(config))
    if reasons:
        fix = _("train with plain LoRA, or merge it with PEFT in full precision and export the merged model as base")
        where = str(folder / "adapter_config.json")
        findings += [Finding("adapter-not-mergeable", "error", where, what, fix=fix) for what in reasons]
        return {}
    known = len(findings)
    tensors = read_safetensors(file, findings)
    if base is None or len(findings) > known:
        return {}
    return pair_loras(file, config, tensors, base, findings)


def unmergeable(config: dict[str, Any]) -> Iterator[str]:
    """What an adapter holds beside LoRA matrices."""
    if config.get("peft_type") != "LORA":
        yield _("peft_type is {found}, only LORA can be merged here", found=repr(config.get("peft_type")))
    for key in UNMERGEABLE:
        if config.get(key):
            yield _("{key} is set ({value}): this is more than a low-rank update", key=key, value=config[key])
    if config.get("bias", "none") != "none":
        yield _("bias is {found}: the adapter trained biases too", found=repr(config["bias"]))
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        yield _("init_lora_weights is {found}, which changes the base itself", found=repr(init))


def pair_loras(
    file: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: Base, findings: list[Finding]
) -> dict[str, Lora]:
    """The pairs of an adapter's file; a finding where a tensor of it has no partner or does not fit the base."""
    projections = {name for name in expected_tensors(base.shape) if "_proj.weight" in name}
    loras: dict[str, Lora] = {}
    unpaired = []
    for name in sorted(tensors):
        weight = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
        if name.endswith(".lora_A.weight") and weight in projections:
            lora = paired(tensors[name], tensors.get(name.replace(".lora_A.", ".lora_B.")), config, base, weight)
            if lora is None:
                unpaired.append(name)
            else:
                loras[weight] = lora
        elif not (name.endswith(".lora_B.weight") and name.replace(".lora_B.", ".lora_A.") in tensors):
            unpaired.append(name)
    if unpaired or not loras:
        what = _("the adapter holds no LoRA matrices")
        if unpaired:
            what = _("tensors do not fit this base: {names}", names=first_names(unpaired))
        why = _("only attention and MLP projections can be merged, in the base the adapter was trained on")
        findings.append(Finding("adapter-does-not-fit", "error", str(file), what, why=why))
    return loras


def paired(a: Tensor, b: Tensor | None, config: dict[str, Any], base: Base, weight: str) -> Lora | None:
    """The LoRA of a base's weight (out, in) from `a` (r, in) and `b` (out, r); None where the shapes don't fit."""
    target = base.tensors.get(weight)
    rank, scale = rank_and_scale(config, weight.removesuffix(".weight"))
    if b is None or target is None or a.shape != (rank, target.shape[1]) or b.shape != (target.shape[0], rank):
        return None
    return Lora(a, b, scale)


def rank_and_scale(config: dict[str, Any], module: str) -> tuple[int, float]:
    """(LoRA rank r, factor of B @ A) of a module: alpha / r, or alpha / sqrt(r) with rsLoRA.

    Patterns as PEFT reads them: peft.utils.other.get_pattern_key and LoraLayer.update_layer.
    """
    rank = int(by_pattern(config.get("rank_pattern") or {}, module, config["r"]))
    alpha = float(by_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, else `default`."""
    matches = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matches, default)
