"""A finished run on builtin:tiny that can be exported, made without a training: its adapter is one of plain PEFT."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from exports import TINY
from run_folders import write_run

from fasttune.files import remove_folder
from fasttune.runs import checkpoints, documents
from fasttune.runs.documents import BaseRecord, Probe, Scores
from fasttune.runs.store import Run
from fasttune.training import provenance

RECIPE = """name = "linzhi"
strategy = "fresh"
[model]
base = "builtin:tiny"
[data]
train = "a.jsonl"
[export]
gguf = ["f16"]
num_ctx = 1024
"""


def exportable(root: Path, material: Path, *, finished: bool = True) -> Run:
    """A run of plain PEFT's adapter in `material`, with it in checkpoint-1 and epoch-1 too."""
    run = write_run(root, series="linzhi", finished=finished)
    run.recipe.write_text(RECIPE, encoding="utf-8")
    base = BaseRecord("builtin:tiny", "", provenance.fingerprint(TINY))
    documents.write(run.provenance, replace(documents.read_provenance(run), base=base, longest_answer=100))
    documents.write(run.scores, Scores((Probe("你好，请介绍一下你自己。", "", ""),), "adapter"))
    for folder in (run.adapter, run.exports, run.checkpoints):
        if folder.exists():
            remove_folder(folder)
    folders = [run.checkpoints / "checkpoint-1", run.epochs / "epoch-1"]
    for folder in [*folders, run.adapter] if finished else folders[:1]:
        shutil.copytree(material / "adapter", folder)
        checkpoints.write_manifest(folder, 1, ["adapter_config.json", "adapter_model.safetensors"])
    return run
