"""llama.cpp's quantizer in its child process: its own reason comes back."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from conftest import small_files

from fasttune.console import FasttuneError
from fasttune.export import Artifact, quantize

pytestmark = pytest.mark.usefixtures("quantizer_child")


def test_file_is_of_the_type(exported: dict[str, Artifact], tmp_path: Path) -> None:
    quantize.quantize(exported["f16"].path, tmp_path / "out.gguf", "q6_k")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q6_K
    assert gguf.GGMLQuantizationType.Q6_K in {tensor.tensor_type for tensor in reader.tensors}


def test_types_are_those_of_llama_h() -> None:
    names = {f"MOSTLY_{name.upper()}": number for name, number in quantize.K_TYPES.items()}
    assert {name: int(gguf.LlamaFileType[name]) for name in names} == names


def test_reason_of_llama_cpp_is_reported(tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(FasttuneError, match=r"could not quantize: .+"):
        quantize.quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "q4_k_m")


def test_full_disk_is_an_error(exported: dict[str, Artifact], tmp_path: Path) -> None:
    with small_files(1 << 20), pytest.raises(FasttuneError, match=r"q4_k_m: llama\.cpp could not quantize: ."):
        quantize.quantize(exported["f16"].path, tmp_path / "out.gguf", "q4_k_m")


def test_another_fasttune_in_the_current_directory_is_not_run(
    exported: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fasttune").mkdir()
    (tmp_path / "fasttune" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    quantize.quantize(exported["f16"].path, tmp_path / "out.gguf", "q4_k_m")
    assert quantize.tensor_types(tmp_path / "out.gguf")
