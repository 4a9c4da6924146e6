"""Where a run comes from: versions, device, commit, and fingerprints of its data and its base."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fasttune
from fasttune.command import without_password
from fasttune.console import _, error
from fasttune.machine import package_versions
from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import documents
from fasttune.runs.documents import BaseRecord, DataRecord, Provenance, RowRecord
from fasttune.runs.store import Run
from fasttune.training import hub

SAMPLED_BYTES = 4 * 1024 * 1024  # read at either end of a weight file


def collect(plan: Plan, base: Path, device: str, rows: RowRecord) -> Provenance:
    """The provenance of a run that begins."""
    model, data = plan.recipe.model, plan.recipe.data
    return Provenance(
        fasttune=fasttune.__version__,
        commit=commit(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        python=platform.python_version(),
        platform=platform.platform(),
        command=tuple(map(without_password, sys.argv[1:])),  # of the storage of a sweep
        device=device_name(device),
        packages=package_versions(),
        base=BaseRecord(model.base, model.revision, fingerprint(base), local_folder(model.base)),
        data=DataRecord(data.train, data.val, plan.dataset.fingerprint),
        system=plan.system,
        parent=plan.start.parent.id if plan.start.parent else None,
        rows=rows,
    )


def require_same_base(before: Run, base: Path) -> None:
    """Raises FasttuneError where the base's fingerprint is not that of the base `before` was trained on."""
    recorded = documents.read_provenance(before).base
    if recorded.fingerprint != fingerprint(base):
        raise error(
            "base-differs",
            _("the weights of {base} are not those {run} was trained on", base=recorded.name, run=before.id),
            where="model.base",
            why=_("an adapter fits the weights it was trained on and no others"),
            fix=_('use the old base (model.revision), or start a new run with strategy = "fresh"'),
        )


def local_folder(name: str) -> str:
    """The absolute path of a base that is a folder; empty for `builtin:tiny` and for a name on a hub."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else ""


def locate_base(run: Run, model: ModelRecipe) -> Path:
    """The local folder of the base that a run was trained on, whatever the current directory is.

    Raises FasttuneError as `hub.locate` does, and where the base was a folder that is there no more.
    """
    recorded = documents.read_provenance(run).base
    folder = recorded.folder
    if not folder:
        return hub.locate(model)
    there = [one for one in (Path(model.base).expanduser(), Path(folder)) if one.is_dir()]
    same = [one for one in there if fingerprint(hub.require_model_folder(one)) == recorded.fingerprint]
    if there:
        return (same or there)[0]
    what = _("there is no folder {folder}", folder=folder)
    fix = _("put the base back there; its tokenizer is needed")
    raise error("base-not-found", what, where=run.id, fix=fix)


def device_name(device: str) -> dict[str, Any]:
    """The GPU with its memory in GiB, or the processor with torch's threads."""
    import torch

    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        return {"kind": "cuda", "name": gpu.name, "memory_gib": round(gpu.total_memory / 1024**3, 2)}
    return {"kind": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


def commit() -> str:
    """The commit of fasttune where it runs from its repository, with `-dirty` for changed files; otherwise empty."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip()


def fingerprint(base: Path) -> str:
    """sha256 over the names, sizes, first and last 4 MiB of a base's config.json, tokenizer.json and weight files.

    Reading whole files would take a minute at every start with a 3B model. A change that this misses shows in the check
    batch's loss (resume_check.py).
    """
    digest = hashlib.sha256()
    for path in [base / "config.json", base / "tokenizer.json", *sorted(base.glob("*.safetensors"))]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(SAMPLED_BYTES))
            if size > 2 * SAMPLED_BYTES:
                file.seek(-SAMPLED_BYTES, 2)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()
