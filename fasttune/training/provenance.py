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
from fasttune.console import _, error
from fasttune.machine import package_versions
from fasttune.planning.strategy import Plan
from fasttune.runs import documents
from fasttune.runs.documents import BaseRecord, DataRecord, Provenance, RowRecord
from fasttune.runs.store import Run

SAMPLED = 4 * 1024 * 1024


def collect(plan: Plan, base: Path, device: str, rows: RowRecord) -> Provenance:
    """What provenance.json holds when a run begins."""
    model, data = plan.recipe.model, plan.recipe.data
    return Provenance(
        fasttune=fasttune.__version__,
        commit=commit(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        python=platform.python_version(),
        platform=platform.platform(),
        command=tuple(sys.argv[1:]),
        device=device_name(device),
        packages=package_versions(),
        base=BaseRecord(model.base, model.revision, fingerprint(base)),
        data=DataRecord(data.train, data.val, plan.dataset.fingerprint),
        system=plan.system,
        parent=plan.start.parent.id if plan.start.parent else None,
        rows=rows,
    )


def require_same_base(before: Run, base: Path) -> None:
    """Raises FasttuneError where the base's files are not those an earlier run was trained on."""
    recorded = documents.read_provenance(before).base
    if recorded.fingerprint != fingerprint(base):
        raise error(
            "base-differs",
            _("the weights of {base} are not those {run} was trained on", base=recorded.name, run=before.id),
            where="model.base",
            why=_("an adapter fits the weights it was trained on and no others"),
            fix=_('use the old base (model.revision), or start a new run with strategy = "fresh"'),
        )


def device_name(device: str) -> dict[str, Any]:
    """The card with its memory, or the processor and its threads."""
    import torch

    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        return {"kind": "cuda", "name": card.name, "memory_gib": round(card.total_memory / 1024**3, 2)}
    return {"kind": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


def commit() -> str:
    """The commit of a fasttune that runs from its repository, `-dirty` where files differ; empty elsewhere."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    described = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip()


def fingerprint(base: Path) -> str:
    """sha256 over a checkpoint's configuration and, for each weight file, its name, size and first and last 4 MiB.

    Whole files would take a 3B model a minute at every start; a change of weights shows in what is read.
    """
    digest = hashlib.sha256()
    for path in [base / "config.json", base / "tokenizer.json", *sorted(base.glob("*.safetensors"))]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(SAMPLED))
            if size > 2 * SAMPLED:
                file.seek(-SAMPLED, 2)
                digest.update(file.read(SAMPLED))
    return digest.hexdigest()
