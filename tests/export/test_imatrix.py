"""The importance matrix: its values, both of llama.cpp's layouts, and what the quantizer makes of it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import REPOSITORY
from exports import TINY, read_model

from fasttune.console import FasttuneError
from fasttune.export import Artifact, imatrix, llama, quantize
from fasttune.export.kept import Passage

PASSAGE = Passage(tuple(range(100, 164)), ((1, 64),))


@pytest.fixture(scope="module")
def own(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The importance matrix of the merged tiny model on PASSAGE."""
    path = tmp_path_factory.mktemp("imatrix") / "own.imatrix"
    imatrix.compute(*read_model(material / "adapter"), (PASSAGE,), path)
    return path


def test_values_are_those_of_hooks_in_torch(own: Path, material: Path) -> None:
    """Mean squares of the inputs of plain transformers' linear layers, for the base of the adapter that is merged."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, trust_remote_code=False).eval()
    base, loras = read_model(material / "adapter")
    seen: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            weight = f"{name}.weight"
            if weight in loras:
                pair = loras[weight]
                module.weight.data += torch.from_numpy(pair.scale * (pair.b.whole() @ pair.a.whole()))
            module.register_forward_pre_hook(
                lambda _module, inputs, weight=weight: seen.update({weight: inputs[0][0].square().mean(0).numpy()})
            )
    with torch.no_grad():
        model(torch.tensor([PASSAGE.tokens]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, base.shape.layers)
    found = imatrix.load(own).columns
    assert (
        found.keys() == {f"{names.get_name(name, ('.weight',))}" for name in seen} and "blk.0.ffn_down.weight" in found
    )
    for name, values in seen.items():
        assert found[names.get_name(name, (".weight",)) or ""] == pytest.approx(values, rel=1e-3, abs=1e-6)


def test_keys_are_those_of_llama_imatrix(own: Path) -> None:
    reader = gguf.GGUFReader(own)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys.pop("imatrix.datasets") and keys == {
        "general.type": "imatrix", "imatrix.chunk_count": 1, "imatrix.chunk_size": 512,
    }  # fmt: skip
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.1.attn_q.weight.in_sum2"] == [256, 1] and shapes["blk.1.attn_q.weight.counts"] == [1, 1]


def test_the_older_layout_is_read(own: Path, tmp_path: Path) -> None:
    values = imatrix.load(own).columns
    data = struct.pack("<i", len(values))
    for name, column in values.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, column.size)
        data += (3 * column).astype("<f4").tobytes()
    for end, said in ((struct.pack("<ii", 3, 4) + b"text", ("text", 3)), (b"", ("", 0))):
        (tmp_path / "old.dat").write_bytes(data + end)
        read = imatrix.load(tmp_path / "old.dat")
        assert read.columns.keys() == values.keys() and (read.dataset, read.chunks) == said
        assert all(np.allclose(read.columns[name], values[name]) for name in values)


def test_the_quantizer_takes_it(own: Path, exported: dict[str, Artifact], tmp_path: Path) -> None:
    """Other bytes, of the same types; and without one those of the export, which had none."""
    for name, importance in (("with", own), ("without", None)):
        quantize.quantize(exported["f16"].path, tmp_path / name, "q4_k_m", importance)
    assert quantize.stored(tmp_path / "with") == quantize.stored(tmp_path / "without")
    assert (tmp_path / "with").read_bytes() != (tmp_path / "without").read_bytes()
    assert (tmp_path / "without").read_bytes() == exported["q4_k_m"].path.read_bytes()


def test_the_file_says_which_one_it_was_made_with(own: Path, exported: dict[str, Artifact], tmp_path: Path) -> None:
    """The keys of llama-quantize (tools/quantize/quantize.cpp), whose texts are cut at 127 bytes."""
    named = tmp_path / f"{'林' * 50}.imatrix"
    named.write_bytes(own.read_bytes())
    quantize.quantize(exported["f16"].path, tmp_path / "out.gguf", "q4_k_m", named)
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert {name: field.contents() for name, field in fields.items() if name.startswith("quantize.")} == {
        "quantize.imatrix.file": "林" * 42, "quantize.imatrix.dataset": imatrix.OWN_TEXT,
        "quantize.imatrix.entries_count": 7 * 4, "quantize.imatrix.chunks_count": 1,
    }  # fmt: skip
    plain = gguf.GGUFReader(exported["q4_k_m"].path).fields
    assert not any(name.startswith("quantize.") for name in plain)


@pytest.mark.slow
def test_llama_imatrix_finds_the_same_and_reads_ours(
    exported: dict[str, Artifact], material: Path, tmp_path: Path
) -> None:
    """llama.cpp's own tool on the same tokens and the F16 file of the same model; then our file through its loader."""
    tool = shutil.which("llama-imatrix")
    if tool is None:
        pytest.skip("llama-imatrix is not on the PATH: llama-cpp-python comes without llama.cpp's tools")
    f16, text = exported["f16"].path, (REPOSITORY / "README.zh-CN.md").read_text(encoding="utf-8")[:4000]
    (tmp_path / "text").write_text(text, encoding="utf-8")
    with llama.open_gguf(f16, 0, vocab_only=True) as model:
        ids = model.tokenize(text)
    chunks = [ids[at : at + imatrix.CHUNK] for at in range(0, len(ids) - imatrix.CHUNK + 1, imatrix.CHUNK)]
    assert len(chunks) >= 2, "the tool wants two chunks at least"
    passages = tuple(Passage(tuple(chunk), ()) for chunk in chunks)
    imatrix.compute(*read_model(material / "adapter"), passages, tmp_path / "ours.imatrix")
    run([tool, "-m", f16, "-f", tmp_path / "text", "-o", tmp_path / "theirs.gguf", "-c", "512", "--parse-special"])
    run([tool, "-m", f16, "--in-file", tmp_path / "ours.imatrix", "-o", tmp_path / "again.gguf"])
    ours, theirs, again = (imatrix.load(tmp_path / name) for name in ("ours.imatrix", "theirs.gguf", "again.gguf"))
    assert ours.columns.keys() == theirs.columns.keys() == again.columns.keys()
    assert ours.chunks == theirs.chunks == again.chunks == len(chunks) and again.dataset == imatrix.OWN_TEXT
    for name, column in ours.columns.items():
        assert np.array_equal(again.columns[name], column), name
        assert np.linalg.norm(theirs.columns[name] - column) < 0.01 * np.linalg.norm(column), name


def run(command: list[str | Path]) -> None:
    """Run a tool, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"text\n" * 9,
                                     struct.pack("<iii", 1, 4, 0)])  # fmt: skip
def test_other_files_are_refused_in_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(FasttuneError) as caught:
        imatrix.load(tmp_path / "bad")
    assert [finding.code for finding in caught.value.findings] == ["imatrix-unreadable"]


def test_one_of_another_model_is_refused(own: Path) -> None:
    base, _loras = read_model(None)
    imatrix.check_fits(own, imatrix.load(own), base)
    columns = imatrix.load(own).columns
    other = {name: values[:-1] if "blk.2.attn_k" in name else values for name, values in columns.items()}
    with pytest.raises(FasttuneError, match=r"of another model: blk\.2\.attn_k\.weight and 0 more do not fit"):
        imatrix.check_fits(own, imatrix.ImportanceMatrix(other), base)
