"""What a training writes, against the space that is free: found out before torch is loaded, and by `fasttune plan`."""

from __future__ import annotations

import shutil
from pathlib import Path

from fasttune.console import Finding, _
from fasttune.files import existing_folder
from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs.store import Run
from fasttune.training import hub, memory
from fasttune.training.memory import ModelSize

SMALL_FILES = 10_000  # bytes of a kept epoch beside its weights: configuration, check batch, manifest, README
TOKENIZER_BYTES = 11_000_000  # of Qwen2.5's tokenizer, vocabulary and merges


def read_size(model: ModelRecipe, base: Path | None) -> ModelSize | None:
    """The size of the base by its config.json, else by its public name; None where neither tells it."""
    try:
        return memory.read_size(base) if base else memory.public_size(model.base)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def epoch_bytes(plan: Plan, size: ModelSize) -> int:
    """The bytes of an adapter on the disk, as it is kept of an epoch."""
    return 4 * size.adapter_weights(plan.recipe.lora) + SMALL_FILES


def download_bytes(model: ModelRecipe) -> int | None:
    """About the bytes of a base on a hub, whose weights are of 16 bits; None for another than a public Qwen2.5."""
    size = memory.public_size(model.base)
    return 2 * (size.linear_weights + size.other_weights) + TOKENIZER_BYTES if size else None


def space_for_run(plan: Plan, base: Path | None, root: Path, resume: Run | None) -> list[Finding]:
    """An error where the runs folder can't hold the least that a run writes: a checkpoint, its adapter and those of
    the kept epochs. `base` is the base's folder, None where it is not on this machine."""
    size = read_size(plan.recipe.model, base)
    if size is None or (resume is not None and resume.status == "finished"):
        return []
    trained, kept = size.adapter_weights(plan.recipe.lora), plan.kept_epochs if resume is None else 0
    needed = memory.checkpoint_bytes(trained) + (1 + kept) * epoch_bytes(plan, size)
    fix = _("free some space, or write elsewhere: `--runs FOLDER`")
    return lacking_space(needed, root, fix, _("a run writes a checkpoint, its adapter and those of the kept epochs"))


def space_for_download(model: ModelRecipe) -> list[Finding]:
    """An error where the hub's cache can't hold the base, as far as its size is known."""
    needed = download_bytes(model)
    if needed is None or model.mirror != "hf":
        return []
    fix = _("free some space, or keep the downloads elsewhere: `export HF_HOME=FOLDER`")
    return lacking_space(needed, hub.cache_folder(), fix, _("{base} has to be downloaded", base=model.base))


def lacking_space(needed: int, folder: Path, fix: str, why: str = "") -> list[Finding]:
    """A finding where a folder, which need not exist yet, lies on a disk with fewer than `needed` bytes free."""
    place = existing_folder(folder)
    free = shutil.disk_usage(place).free
    if free >= needed:
        return []
    what = _("{needed} are needed, {free} are free", needed=in_words(needed), free=in_words(free))
    return [Finding("disk-full", "error", str(place), what, why, fix)]


def in_words(size: int) -> str:
    """`1.5 MB`, `3.09 GB`."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
