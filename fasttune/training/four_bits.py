"""QLoRA: a base that bitsandbytes holds in NF4, on a GPU and on a CPU. What has to be true before and after it is
loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fasttune.console import _, error
from fasttune.training import memory

BLOCK = 64  # weights of a row of a matrix that share a scale (QLoRA, arXiv 2305.14314, section 3)


def require_whole_blocks(base: Path) -> None:
    """Raises FasttuneError for a base with rows that are no multiple of BLOCK long.

    On a CPU, where this is asked, bitsandbytes 0.50 gives the scales of such rows to the wrong weights: a matrix of 160
    columns comes back with an error of 22 % instead of 9 %. All Qwen2.5 models are made of whole blocks.
    """
    shapes = memory.read_size(base).linear_shapes.values()
    widths = sorted({inputs for inputs, _outputs in shapes if inputs % BLOCK})
    if widths:
        what = _("this base can't be held in 4 bits on a CPU: it has layers {widths} wide, no multiple of {block}",
                 widths=", ".join(map(str, widths)), block=BLOCK)  # fmt: skip
        raise error("base-not-for-4-bits", what, where="model.load_in_4bit", fix=_("leave load_in_4bit out"))


def require_four_bits(model: Any) -> None:
    """Raises FasttuneError where none of a loaded model's layers is in NF4: Unsloth loads the 16-bit weights instead
    where bitsandbytes does not work, and says so only on stdout."""
    if any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        return
    what = _("the base was loaded in 16 bits: bitsandbytes can't hold it in 4 bits on this machine")
    fix = _("`fasttune doctor` tries it; or leave load_in_4bit out")
    raise error("4-bits-not-available", what, where="model.load_in_4bit", fix=fix)
