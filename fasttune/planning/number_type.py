"""model.dtype where it is "auto": the number type a training computes in on a CPU.

bfloat16 where the processor has instructions that multiply it, and the base is large enough to gain from them. "auto"
stays "auto" where a GPU computes, whose capability decides once torch is loaded, and where the CPU computes in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fasttune.machine import bfloat16_instructions, visible_gpu
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs.bands import TINY

# The width from which bfloat16 pays. In float32 matrix products take 86 % of a step at 896 (Qwen2.5 0.5B); at 256
# (builtin:tiny) 56 % of 0.2 s, so that a run gains less than its start takes, and loses what can be compared exactly.
WIDE = 512


def suited(model: ModelRecipe) -> tuple[Literal["auto", "bfloat16"], str]:
    """The value for model.dtype = "auto" and its source: `("bfloat16", "default (auto: …)")`, or "auto" as it is.

    In NF4 the base is multiplied in float32 on a CPU: what bfloat16 would change there was not measured.
    """
    instructions = bfloat16_instructions()
    if not instructions or model.load_in_4bit or width(model.base) < WIDE or uses_gpu():
        return "auto", "default"
    return "bfloat16", f"default (auto: the processor has {instructions})"


def chosen(model: ModelRecipe) -> ModelRecipe:
    """The model with the number type that a training of it would have."""
    return replace(model, dtype=suited(model)[0]) if model.dtype == "auto" else model


def uses_gpu() -> bool:
    """Whether the training will be on a GPU: the driver lists one, and UNSLOTH_FORCE_CPU=1 does not forbid it."""
    if os.environ.get("UNSLOTH_FORCE_CPU") == "1":
        return False
    try:
        return bool(visible_gpu())
    except subprocess.TimeoutExpired:  # there is a driver, at least
        return True


def width(base: str) -> int:
    """The width of a base's hidden states where it is a folder; WIDE for a name on a hub."""
    found = read_config(base).get("hidden_size")
    return found if isinstance(found, int) else WIDE


def read_config(base: str) -> dict[str, Any]:
    """config.json of a base that is a folder; empty for a name on a hub, and where there is none that can be read."""
    folder = Path(__file__).parent.parent / "tiny" if base == TINY else Path(base).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
