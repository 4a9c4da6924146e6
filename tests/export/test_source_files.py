"""Safetensors and JSON files of others: exact values, and findings for damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fasttune.console import Finding
from fasttune.export import source_files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"matrix": matrix, "vector": matrix[0].clone()}, tmp_path / "a.safetensors")
    findings: list[Finding] = []
    tensors = source_files.read_safetensors(tmp_path / "a.safetensors", findings)
    assert findings == [] and set(tensors) == {"matrix", "vector"}
    assert np.array_equal(tensors["matrix"].rows(2, 5), matrix[2:5].float().numpy())
    assert np.array_equal(tensors["vector"].whole(), matrix[0].float().numpy())
    assert source_files.stored_bytes(tensors["matrix"]) == matrix.numel() * matrix.element_size()


def safetensors_bytes(header: object, data: bytes) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        safetensors_bytes({"a": ENTRY}, bytes(7)),
        safetensors_bytes({"a": ENTRY}, bytes(9)),
        safetensors_bytes({"a": ENTRY | {"shape": [3]}}, bytes(8)),
        safetensors_bytes({"a": {"dtype": "F32"}}, bytes(8)),
        safetensors_bytes({}, bytes(8)),
        safetensors_bytes([1], b""),
    ],
    ids=["empty", "garbage", "cut", "longer", "other shape", "no offsets", "no tensors", "no object"],
)
def test_damaged_safetensors_are_a_finding(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    findings: list[Finding] = []
    assert source_files.read_safetensors(file, findings) == {}
    (finding,) = findings
    assert finding.code == "weights-damaged" and finding.where == str(file)
    assert finding.what == f"is not a complete safetensors file ({len(content)} bytes)"


def test_file_without_tensors_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"__metadata__": {"format": "pt"}}, b""))
    findings: list[Finding] = []
    assert source_files.read_safetensors(tmp_path / "a.safetensors", findings) == {} and findings == []


def test_json_objects_only(tmp_path: Path) -> None:
    file, findings = tmp_path / "a.json", list[Finding]()
    assert source_files.read_json_object(file, "base-unreadable", findings) is None
    for text in ("{", "[1]"):
        file.write_text(text)
        assert source_files.read_json_object(file, "base-unreadable", findings) is None
    assert [finding.what.split(":")[0] for finding in findings] == [
        "can't be read", "is not JSON", "is not a JSON object",
    ]  # fmt: skip
    assert {(finding.code, finding.where) for finding in findings} == {("base-unreadable", str(file))}
