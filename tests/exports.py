"""What the export tests share, a pytest plugin that conftest.py names: one export of the tiny base with an adapter that
plain PEFT made, the figures of plain transformers and PEFT for it (export/plain_peft.py), and files to damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from conftest import Shared
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fasttune.console import FasttuneError, Finding, error
from fasttune.export import Artifact, ExportRequest, chatml, export, kept, llama, quantize, verify
from fasttune.export.adapter_reader import read_adapter
from fasttune.export.base_reader import read_base
from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base, Lora

Expected = dict[str, NDArray[Any]]
TINY = Path(__file__).parent.parent / "fasttune" / "tiny"
SYSTEM = "你是林栀，说话'轻声细语'。\n\tBackslash \\n, {{ braces }} and \"quotes\"."
TYPES = ("q4_k_m", "f16", "q8_0")
LORA_NAME = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
LORA_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}


def silent(line: str) -> None:
    """Report nothing."""


def request(out: Path, adapter: Path | None = None, **changed: Any) -> ExportRequest:
    """A request for the tiny base, as the run linzhi/001-fresh would make it."""
    fields = {"base": TINY, "adapter": adapter, "out": out, "name": "linzhi", "types": TYPES,
              "run_id": "linzhi/001-fresh", "system": SYSTEM, "num_ctx": 1024}  # fmt: skip
    return ExportRequest(**{**fields, **changed})


def refusal(refused: ExportRequest) -> list[Finding]:
    """The findings that an export is refused for; it must leave no file."""
    with pytest.raises(FasttuneError) as caught:
        export(refused, silent)
    assert not refused.out.is_dir() or not list(refused.out.iterdir())
    return list(caught.value.findings)


def read_model(adapter: Path | None, base: Path = TINY) -> tuple[Base, dict[str, Lora]]:
    """A base and its adapter, read without a finding."""
    findings: list[Finding] = []
    model = read_base(base, findings)
    loras = read_adapter(adapter, model, findings) if adapter else {}
    assert model is not None and not findings
    return model, loras


def file_logits(path: Path, ids: NDArray[Any]) -> FloatArray:
    """The logits of a GGUF file at all positions of a sequence, by llama.cpp."""
    with llama.open_gguf(path, 512) as model:
        return model.logits(ids.tolist(), last=len(ids))


QUANTIZER_CHILD = quantize.quantize


def quantize_here(source: Path, target: Path, quantization: str, importance: Path | None = None) -> None:
    """What the quantizer's child process does."""
    if quantize.main(str(source), str(target), quantization, str(importance or "")):
        raise error("quantize-failed", f"llama.cpp could not quantize: {llama.last_log_line()}", where=quantization)


@pytest.fixture(scope="session", autouse=True)
def quantizer_here() -> Iterator[None]:
    """llama.cpp quantizes in this process: starting another one takes as long as quantizing the tiny base."""
    with patch.object(quantize, "quantize", quantize_here):
        yield


@pytest.fixture
def quantizer_child() -> Iterator[None]:
    """It does so in its child process, as users have it."""
    with patch.object(quantize, "quantize", QUANTIZER_CHILD):
        yield


@pytest.fixture(scope="session")
def material(shared: Shared) -> Path:
    """adapter/, untied/ and expected.npz, by plain PEFT in a process of its own (Unsloth patches PEFT in this one); made
    once for all workers, and no test changes it."""
    script = Path(__file__).parent / "export" / "plain_peft.py"

    def make(folder: Path) -> None:
        environ = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}  # as models.import_unsloth: nothing is compiled
        subprocess.run([sys.executable, script, TINY, folder], check=True, capture_output=True, env=environ)

    return shared("plain", make)


@pytest.fixture(scope="session")
def expected(material: Path) -> Expected:
    """The logits and ids in expected.npz."""
    with np.load(material / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def exported(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artifacts of one export of TYPES with the adapter, by type."""
    out = tmp_path_factory.mktemp("runs") / "exports"
    return {artifact.type: artifact for artifact in export(request(out, material / "adapter"), silent)}


@pytest.fixture(scope="session")
def trained(material: Path) -> kept.Reference:
    """The reference of the check conversation by the model in `exported`."""
    base, loras = read_model(material / "adapter")
    passage = verify.check_passage(base, chatml.load_tokenizer(TINY), SYSTEM)
    return kept.compute_reference(base, loras, [passage])


# Files to damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the tiny base whose files may be changed."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in TINY.iterdir():
        if file.suffix == ".safetensors":
            os.symlink(file, folder / file.name)
        elif file.is_file():
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A small adapter that can be merged."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(LORA_CONFIG))
    write_adapter(folder, lora(0))
    return folder


def lora(layer: int, rank: int = 2, inner: int = 256, outer: int = 256) -> dict[str, FloatArray]:
    """A LoRA pair for the query projection (outer, inner) of a layer, as PEFT stores it."""
    random = np.random.default_rng(layer)
    shapes = {"A": (rank, inner), "B": (outer, rank)}
    return {
        LORA_NAME.format(layer, side): random.normal(scale=0.05, size=size).astype(np.float32)
        for side, size in shapes.items()
    }


def write_adapter(folder: Path, tensors: dict[str, FloatArray]) -> None:
    """Replace an adapter's tensors."""
    save_file(tensors, folder / "adapter_model.safetensors")


def edit(file: Path, **changes: Any) -> None:
    """Replace fields of a JSON object in a file."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tokenizer.json of a folder in place."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
