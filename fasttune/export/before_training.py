"""What an export will refuse or warn of, asked before the training: by `fasttune run` and `fasttune plan` alike.

Files and base: preflight.py. Ollama: its address, and whether a server answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fasttune.console import Finding, findings_of
from fasttune.export import ollama, preflight
from fasttune.export.request import request_before_training, request_for_run
from fasttune.recipe.schema import Recipe
from fasttune.runs.store import Run


def check_before_training(
    recipe: Recipe, system: str | None, base: Path | None, root: Path, run: Run | None
) -> list[Finding]:
    """Warnings about the export of what a recipe trains below the runs folder `root`, and is served with `system`.

    `base` is the base's local folder, None where it is not on this machine yet; `run` is the run that is resumed, of
    which files may exist. Reads no weights, but for the checksums of a run that lacks nothing but its files.
    Raises FasttuneError with every finding where one of them would stop the export.
    """
    return findings_of(
        lambda: files(recipe, system, base, root, run), lambda: ollama.look_before_training(recipe.export.ollama)
    )


def files(recipe: Recipe, system: str | None, base: Path | None, root: Path, run: Run | None) -> Sequence[Finding]:
    """As `check_before_training`, about the files alone."""
    if base is not None and run is not None and run.status == "finished":
        request = request_for_run(run, base, recipe.export)
        return () if request.is_empty else preflight.preflight(request).warnings
    return preflight.check(request_before_training(base, recipe, system, root))
