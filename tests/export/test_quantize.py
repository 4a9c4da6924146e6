"""llama.cpp's quantizer in its child process: its own reason comes back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import small_files
from exports import TINY, read_model
from safetensors.numpy import save_file

from fasttune.console import FasttuneError
from fasttune.export import Artifact, quantize
from fasttune.export.vocabulary import read_vocabulary
from fasttune.export.weights import expected_tensors
from fasttune.export.write import Metadata, write_gguf
from fasttune.training.progress import ByteLine

pytestmark = pytest.mark.usefixtures("quantizer_child")


def test_file_is_of_the_type(exported: dict[str, Artifact], tmp_path: Path) -> None:
    quantize.quantize(exported["f16"].path, tmp_path / "out.gguf", "q6_k")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q6_K
    assert gguf.GGMLQuantizationType.Q6_K in {tensor.tensor_type for tensor in reader.tensors}


def write_short_rows(path: Path, folder: Path) -> None:
    """An F16 file of two layers of random weights whose hidden size, as that of Qwen2.5-0.5B, is a multiple of 32 and
    not of 256."""
    sizes = {"hidden_size": 224, "intermediate_size": 512, "num_hidden_layers": 2}
    shape = replace(read_model(None)[0].shape, hidden_size=224, intermediate_size=512, layers=2)
    random = np.random.default_rng(0)
    tensors = {name: random.normal(scale=0.02, size=size).astype(np.float16)
               for name, size in expected_tensors(shape).items()}  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | sizes))
    vocabulary = read_vocabulary(TINY, shape.vocab_size, [])
    assert vocabulary is not None
    write_gguf(path, read_model(None, folder)[0], {}, vocabulary, Metadata("x", "x/001", ""), "F16")


def quantizer_log(source: Path, target: Path, quantization: str) -> str:
    """What llama.cpp's quantizer says while it works."""
    command = (
        "import ctypes, os, sys, llama_cpp as lib; s = lib.llama_model_quantize_default_params(); "
        "s.ftype = int(sys.argv[3]); s.nthread = 1; "
        "sys.exit(lib.llama_model_quantize(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), ctypes.byref(s)))"
    )
    arguments = [sys.executable, "-c", command, str(source), str(target), str(quantize.K_TYPES[quantization])]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stderr


@pytest.mark.parametrize("quantization", ["q4_k_m", "iq4_xs", "iq4_nl"])
def test_what_a_file_of_short_rows_really_is(tmp_path: Path, quantization: str) -> None:
    """Of the shape of Qwen2.5-0.5B, by llama.cpp's own account: its log names the matrices that fell back."""
    write_short_rows(tmp_path / "f16", tmp_path)
    quantize.quantize(tmp_path / "f16", tmp_path / "out", quantization)
    log, found = quantizer_log(tmp_path / "f16", tmp_path / "again", quantization), quantize.stored(tmp_path / "out")
    bits = float(re.findall(r"quant size .*\((.*) BPW\)", log)[0])
    assert found.bits_per_weight == pytest.approx(bits, abs=0.01) and sum(found.types.values()) == 2 * 7 + 1
    fell_back = Counter(name.upper() for name in re.findall(r"falling back to +(\w+)", log))
    if quantization != "iq4_nl":
        fell_back["Q8_0"] += 1  # the embedding: for a type in blocks of 256 the mix itself says so, without a word
    assert quantize.fallback_types(quantization, found) == dict(fell_back)


def test_types_are_those_of_llama_h() -> None:
    names = {f"MOSTLY_{name.upper()}": number for name, number in quantize.K_TYPES.items()}
    assert {name: int(gguf.LlamaFileType[name]) for name in names} == names


def test_progress_counts_the_bytes_of_the_f16_file(
    exported: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[ByteLine] = []

    class Kept(ByteLine):
        def __enter__(self) -> ByteLine:
            lines.append(self)
            return super().__enter__()

    monkeypatch.setattr(quantize, "ByteLine", Kept)
    quantize.quantize(exported["f16"].path, tmp_path / "linzhi-Q2_K.gguf.part", "q2_k")
    (line,) = lines
    assert line.text == "linzhi-Q2_K.gguf" and line.done == line.total > 0.9 * exported["f16"].bytes


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
    assert quantize.stored(tmp_path / "out.gguf").types
