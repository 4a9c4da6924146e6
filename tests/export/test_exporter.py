"""An export from the request to the artifacts: what lies in the folder, and nothing half-written."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import small_files
from exports import SYSTEM, TYPES, request, silent

from fasttune.console import FasttuneError
from fasttune.export import Artifact, ExportRequest, export, llama, verify
from fasttune.export.artifact import read_document
from fasttune.export.making import FileMaker


def test_artifacts_and_their_documents(exported: dict[str, Artifact]) -> None:
    assert list(exported) == list(TYPES)
    folder = exported["f16"].path.parent
    names = {f"linzhi-{name.upper()}.{end}" for name in TYPES for end in ("gguf", "json")} | {"Modelfile"}
    assert {path.name for path in folder.iterdir()} == names
    for quantization, artifact in exported.items():
        document = read_document(artifact.path)
        assert document.sha256 == artifact.sha256 and document.bytes == artifact.path.stat().st_size
        assert document.run_id == "linzhi/001-fresh" and document.system == SYSTEM == artifact.system
        assert artifact.checks["tokens"]["equal"] and artifact.checks["logits"]["positions"] > 150
        figures = artifact.figures
        assert figures is not None and document.figures == figures and figures.bytes == document.bytes
        assert (figures.file, figures.type, figures.measured_on) == (artifact.path.name, quantization, "fixed")
        assert figures.kept is not None and figures.learned is not None and figures.learned > 0.01
        assert figures.kept == pytest.approx(1 - figures.kl / figures.learned)
    shares = {name: artifact.figures.kept for name, artifact in exported.items() if artifact.figures}
    assert 1 >= (shares["f16"] or 0) > (shares["q8_0"] or 0) > (shares["q4_k_m"] or 0)
    assert (shares["f16"] or 0) > 0.999


def test_f16_is_kept_only_where_it_is_requested(material: Path, tmp_path: Path) -> None:
    (artifact,) = export(request(tmp_path, material / "adapter", types=("q4_k_m",)), silent)
    assert {path.name for path in tmp_path.iterdir()} == {"linzhi-Q4_K_M.gguf", "linzhi-Q4_K_M.json", "Modelfile"}
    assert artifact.path.name == "linzhi-Q4_K_M.gguf"


def test_the_same_export_again_is_used_as_it_is(material: Path, exported: dict[str, Artifact]) -> None:
    folder = exported["f16"].path.parent
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}
    lines: list[str] = []
    assert export(request(folder, material / "adapter"), lines.append) == list(exported.values())
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.gguf")} == before
    assert lines == [f"linzhi-{name.upper()}.gguf already exists" for name in TYPES]


@pytest.mark.parametrize("changed", [{"run_id": "linzhi/002-retune"}, {"system": "other"}, {"adapter": None}])
def test_another_export_never_overwrites(
    material: Path, exported: dict[str, Artifact], changed: dict[str, Any]
) -> None:
    folder = exported["f16"].path.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FasttuneError) as caught:
        export(request(folder, **{"adapter": material / "adapter", **changed}), silent)
    assert [finding.code for finding in caught.value.findings] == ["export-exists"] * 3
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("types", [("f16",), ("q4_k_m",)])
def test_an_f16_file_that_is_not_exact_leaves_nothing(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...]
) -> None:
    """Also where it is only what another type is made from."""
    monkeypatch.setattr(verify, "EXACT", 1e-12)
    with pytest.raises(FasttuneError) as caught:
        export(request(tmp_path, material / "adapter", types=types), silent)
    assert caught.value.findings[0].code == "gguf-too-far" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("limit", "quantization"), [(20_000, "f16"), (4 << 20, "q8_0"), (6 << 20, "q4_k_m")])
def test_full_disk_leaves_nothing(tmp_path: Path, limit: int, quantization: str) -> None:
    full = pytest.raises(FasttuneError, match="can't be written: File too large")
    with small_files(limit), full as caught:
        export(request(tmp_path, types=(quantization,)), silent)
    assert caught.value.findings[0].code == "cannot-write"
    assert list(tmp_path.iterdir()) == []


def export_and_die(asked: ExportRequest) -> None:
    """What a process does that is killed once its file is written and before it is measured."""
    with patch.object(FileMaker, "measure", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)):
        export(asked, silent)


def test_killed_export_can_be_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = multiprocessing.get_context("fork").Process(target=export_and_die, args=(request(out, types=("q8_0",)),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and (out / "linzhi-Q8_0.gguf.part").exists()
    assert not (out / "linzhi-Q8_0.gguf").exists()
    (out / "linzhi-Q4_K_M.gguf.part").write_bytes(b"of an earlier one")
    export(request(out, types=("q8_0",)), silent)
    assert {path.name for path in out.iterdir()} == {"linzhi-Q8_0.gguf", "linzhi-Q8_0.json", "Modelfile"}


def test_without_llama_cpp_files_are_written_and_the_gap_is_reported(
    material: Path, exported: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = material / "adapter"
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama.library.cache_clear()
    lines: list[str] = []
    artifacts = export(request(tmp_path, adapter, types=("f16", "q8_0")), lines.append)
    with pytest.raises(FasttuneError, match="q4_k_m needs llama-cpp-python, which can't be used"):
        export(request(tmp_path / "k", adapter, types=("q4_k_m",)), silent)
    assert [artifact.sha256 for artifact in artifacts] == [exported["f16"].sha256, exported["q8_0"].sha256]
    assert all(artifact.checks == {"unchecked": "llama-cpp-python can't be used"} for artifact in artifacts)
    assert lines[0].startswith("warning: ") and "written but not checked" in lines[0]
    assert export(request(tmp_path, adapter, types=("f16",)), silent) == [artifacts[0]]
    monkeypatch.undo()
    (checked,) = export(request(tmp_path, adapter, types=("f16",)), silent)
    assert checked.sha256 == artifacts[0].sha256 and checked.checks["logits"]["top1"] == 1


def test_system_prompt_that_a_modelfile_cannot_hold(tmp_path: Path) -> None:
    lines: list[str] = []
    export(request(tmp_path, types=("f16",), system='three """ quotes'), lines.append)
    assert lines[-1].startswith("no Modelfile: ") and not (tmp_path / "Modelfile").exists()


def test_export_imports_no_torch_until_it_works() -> None:
    code = "import sys, fasttune.export; print({'torch', 'transformers', 'llama_cpp', 'ollama'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
