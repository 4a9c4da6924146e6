"""Export against an independent side (tests/plain_peft.py): the files say what plain transformers and PEFT say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import jinja2.sandbox
import numpy as np
import pytest
import safetensors.torch
from conftest import small_files

import fasttune
from fasttune.console import FasttuneError
from fasttune.export import Artifact, chatml, export, llama, preflight, quantize, reference, verify, weights

TINY = Path(fasttune.__file__).parent / "tiny"
SYSTEM = "你是林栀，说话'轻声细语'。\n\tBackslash \\n, {{ braces }} and \"quotes\"."
TYPES = ("q4_k_m", "f16", "q8_0")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """adapter/, untied/ and expected.npz, by plain PEFT in a process of its own (Unsloth patches PEFT in this one)."""
    folder = tmp_path_factory.mktemp("plain")
    script = Path(__file__).parent / "plain_peft.py"
    subprocess.run([sys.executable, script, TINY, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def expected(material: Path) -> dict[str, np.ndarray]:
    with np.load(material / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def exported(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Artifacts of one export of all three kinds, by type."""
    out = tmp_path_factory.mktemp("runs") / "exports"
    return {artifact.type: artifact for artifact in run_export(out, material / "adapter")}


def run_export(
    out: Path, adapter: Path | None, base: Path = TINY, types: tuple[str, ...] = TYPES, **changed
) -> list[Artifact]:
    arguments = {"run_id": "linzhi/001-fresh", "system": SYSTEM, "num_ctx": 1024, "say": lambda line: None, **changed}
    return export(base, adapter, out, "linzhi", types, **arguments)


def read_merged(adapter: Path | None, base: Path = TINY) -> tuple[weights.Base, dict[str, weights.Lora]]:
    problems: list = []
    model = weights.read_base(base, problems)
    loras = weights.read_adapter(adapter, model, problems) if adapter else {}
    assert model is not None and not problems
    return model, loras


def file_logits(path: Path, ids: np.ndarray) -> np.ndarray:
    with llama.open_gguf(path, 512) as model:
        return model.logits(ids.tolist(), last=len(ids))


# What is in the files ----------------------------------------------------------------------------------------------


def test_f16_is_plain_pefts_merged_model(exported, expected) -> None:
    logits = file_logits(exported["f16"].path, expected["ids"])
    trained = verify.divergence(expected["merged"], logits)
    assert trained.kl_mean < 1e-5 and trained.top1 == 1
    assert verify.divergence(expected["base"], logits).kl_mean > 0.01  # the adapter is in it
    assert np.abs(logits - expected["merged"]).max() < 0.05


def test_reference_is_transformers(material, expected) -> None:
    ids = expected["ids"].tolist()
    for adapter, base, name in (
        (None, TINY, "base"),
        (material / "adapter", TINY, "merged"),
        (None, material / "untied", "untied"),
    ):
        logits = reference.forward(*read_merged(adapter, base), ids, len(ids))
        assert np.abs(logits - expected[name]).max() < 2e-4 * np.abs(expected[name]).max()


def test_untied_float32_shards_with_unused_rows(material, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(verify.GATES, "q4_k_m", (5e-2, 0.5))  # a random model is undecided everywhere
    artifacts = run_export(tmp_path, None, material / "untied", types=("f16", "q4_k_m"), system=None, num_ctx=512)
    logits = file_logits(tmp_path / "linzhi-F16.gguf", expected["ids"])
    assert verify.divergence(expected["untied"], logits).kl_mean < 1e-5
    tokens = gguf.GGUFReader(tmp_path / "linzhi-F16.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 5200 and tokens[5120] == "[PAD5120]" and tokens[5119] == "<|im_end|>"
    assert artifacts[0].system == "You are a helpful assistant."  # what the template says by itself


def test_q8_0_has_the_bytes_of_llama_cpps_quantizer(exported, tmp_path) -> None:
    command = (
        "import sys; from fasttune.export import quantize; quantize.K_TYPES['q8_0'] = 7; quantize.main(*sys.argv[1:])"
    )
    theirs = tmp_path / "theirs.gguf"
    subprocess.run(
        [sys.executable, "-c", command, exported["f16"].path, theirs, "q8_0"], check=True, capture_output=True
    )
    ours, other = gguf.GGUFReader(exported["q8_0"].path), gguf.GGUFReader(theirs)
    tensors = {tensor.name: tensor for tensor in other.tensors}
    assert len(ours.tensors) == len(tensors) == 50
    for tensor in ours.tensors:
        assert tensor.tensor_type == tensors[tensor.name].tensor_type
        assert np.array_equal(tensor.data, tensors[tensor.name].data)
    assert keys(ours) == keys(other)


def keys(reader: gguf.GGUFReader) -> dict[str, object]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def test_keys_are_those_of_llama_cpps_converter(exported) -> None:
    found = keys(gguf.GGUFReader(exported["f16"].path))
    tokens = found.pop("tokenizer.ggml.tokens")
    types = found.pop("tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 5120 and types.count(3) == 3 and types.count(1) == 5117
    assert len(found.pop("tokenizer.ggml.merges")) > 4000
    assert SYSTEM.split("。")[0].replace("'", "\\'") in found.pop("tokenizer.chat_template")
    assert found.pop("qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert found == {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "linzhi",
        "fasttune.run_id": "linzhi/001-fresh",
        "general.size_label": "4.5M",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "qwen2.block_count": 4,
        "qwen2.context_length": 4096,
        "qwen2.embedding_length": 256,
        "qwen2.feed_forward_length": 768,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def test_template_in_the_file_speaks_for_the_persona(exported) -> None:
    tokenizer = chatml.load_tokenizer(TINY)
    source = keys(gguf.GGUFReader(exported["f16"].path))["tokenizer.chat_template"]
    template = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    said = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " b\n"},
        {"role": "user", "content": "c"},
    ]
    persona, other = {"role": "system", "content": SYSTEM}, {"role": "system", "content": "other"}
    trained = chatml.render(tokenizer, [persona, *said])
    assert template.render(messages=said, add_generation_prompt=True) == trained
    assert template.render(messages=[persona, *said], add_generation_prompt=True) == trained
    assert template.render(messages=[other, *said], add_generation_prompt=True) == trained.replace(SYSTEM, "other")
    assert chatml.served_template(tokenizer, None) == tokenizer.chat_template


def test_merged_folder_is_plain_pefts(material, expected, tmp_path) -> None:
    run_export(tmp_path, material / "adapter", types=("f16",), keep_merged=True)
    logits = reference.forward(*read_merged(None, tmp_path / "merged"), expected["ids"].tolist(), len(expected["ids"]))
    assert verify.divergence(expected["merged"], logits).kl_mean < 1e-3  # bfloat16, as the base
    theirs, ours = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (TINY, tmp_path / "merged"))
    assert ours.keys() == theirs.keys() and all(ours[name].dtype == theirs[name].dtype for name in ours)
    name = "model.layers.0.mlp.down_proj"
    loras = safetensors.torch.load_file(material / "adapter" / "adapter_model.safetensors")
    low_rank = [loras[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA"]
    merged = theirs[f"{name}.weight"].float() + 5 / 8**0.5 * (low_rank[0] @ low_rank[1])
    assert (merged.bfloat16() == ours[f"{name}.weight"]).float().mean() > 0.999  # torch adds in another order
    lines: list[str] = []
    run_export(tmp_path, material / "adapter", types=("f16",), keep_merged=True, say=lines.append)
    assert lines == ["linzhi-F16.gguf is there already"]
    with pytest.raises(FasttuneError, match="merged: is there already and was made from something else"):
        run_export(tmp_path, material / "adapter", types=("q8_0",), keep_merged=True, run_id="another/001-fresh")


# What is said of them ----------------------------------------------------------------------------------------------


def test_artifacts_and_their_json(exported) -> None:
    assert list(exported) == list(TYPES)
    folder = exported["f16"].path.parent
    names = {f"linzhi-{kind.upper()}.{end}" for kind in TYPES for end in ("gguf", "json")} | {"Modelfile"}
    assert {path.name for path in folder.iterdir()} == names
    for kind, artifact in exported.items():
        document = json.loads(artifact.path.with_suffix(".json").read_text(encoding="utf-8"))
        assert document["sha256"] == artifact.sha256 and document["bytes"] == artifact.path.stat().st_size
        assert document["run_id"] == "linzhi/001-fresh" and document["system"] == SYSTEM == artifact.system
        assert document["checks"] == artifact.checks and set(document["versions"]) > {"gguf", "numpy"}
        figures = artifact.checks["logits"]
        limit, agreement = verify.GATES[kind]
        assert artifact.checks["tokens"]["equal"] and figures["positions"] > 150
        assert 0 <= figures["kl_mean"] < limit and figures["top1"] >= agreement
        assert artifact.bytes <= preflight.expected_bytes(read_merged(None)[0].shape, kind) + preflight.HEADER_BYTES
    kl = {kind: artifact.checks["logits"]["kl_mean"] for kind, artifact in exported.items()}
    assert kl["f16"] < kl["q8_0"] < kl["q4_k_m"]


def test_f16_is_not_kept_unasked(material, tmp_path) -> None:
    (artifact,) = run_export(tmp_path, material / "adapter", types=("q4_k_m",))
    assert {path.name for path in tmp_path.iterdir()} == {"linzhi-Q4_K_M.gguf", "linzhi-Q4_K_M.json", "Modelfile"}
    assert artifact.path.name == "linzhi-Q4_K_M.gguf"


def test_same_export_again_is_used_as_it_is(material, exported) -> None:
    folder = exported["f16"].path.parent
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}
    lines: list[str] = []
    again = run_export(folder, material / "adapter", say=lines.append)
    assert again == list(exported.values())
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.gguf")} == before
    assert lines == [f"linzhi-{kind.upper()}.gguf is there already" for kind in TYPES]


def test_another_export_never_overwrites(material, exported) -> None:
    folder = exported["f16"].path.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for changed in ({"run_id": "linzhi/002-retune"}, {"system": "other"}, {"adapter": None}):
        adapter = changed.pop("adapter", material / "adapter")
        with pytest.raises(FasttuneError) as caught:
            run_export(folder, adapter, **changed)
        assert [finding.code for finding in caught.value.findings] == ["export-exists"] * 3
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# Refused where it is not what was trained --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(material) -> verify.Reference:
    base, loras = read_merged(material / "adapter")
    return verify.reference(base, loras, verify.check_ids(base, chatml.load_tokenizer(TINY), SYSTEM))


def test_the_model_without_its_adapter_is_refused(trained, tmp_path) -> None:
    (base,) = run_export(tmp_path, None, types=("q8_0",))
    with pytest.raises(FasttuneError, match=r"too far from what was trained: KL"):
        verify.check_logits(base.path, "q8_0", trained)


def test_damaged_weights_are_refused(exported, trained, tmp_path) -> None:
    damaged = tmp_path / "damaged.gguf"
    content = bytearray(exported["f16"].path.read_bytes())
    content[-1_000_000:-900_000] = os.urandom(100_000)
    damaged.write_bytes(content)
    with pytest.raises(FasttuneError) as caught:
        verify.check_logits(damaged, "f16", trained)
    assert caught.value.findings[0].code in ("gguf-too-far", "gguf-not-finite")


@pytest.mark.parametrize("keep", [0, 3, 1000, -4096])
def test_truncated_file_is_refused(exported, trained, tmp_path, keep) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(exported["q8_0"].path.read_bytes()[:keep])
    with pytest.raises(FasttuneError, match=r"llama\.cpp can't load it: ."):
        verify.check_logits(cut, "q8_0", trained)


def test_other_tokens_are_refused(exported, tmp_path) -> None:
    """A file in which two tokens have changed places."""
    path = shutil.copy(exported["q8_0"].path, tmp_path / "swapped.gguf")
    field = gguf.GGUFReader(path, "r+").fields["tokenizer.ggml.tokens"]
    one, other = (field.parts[field.data[field.contents().index(token)]] for token in "ab")
    one[:], other[:] = other.copy(), one.copy()
    one.base.flush()
    with pytest.raises(FasttuneError, match=r"llama\.cpp cuts .* into other tokens than training"):
        verify.check_tokens(Path(path), chatml.load_tokenizer(TINY))


def test_a_file_beyond_its_limit_leaves_nothing(material, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(verify.GATES, "q4_k_m", (1e-9, 0.85))
    with pytest.raises(FasttuneError) as caught:
        run_export(tmp_path, material / "adapter", types=("q8_0", "q4_k_m"))
    assert caught.value.findings[0].code == "gguf-too-far"
    assert {path.name for path in tmp_path.iterdir()} == {"linzhi-Q8_0.gguf", "linzhi-Q8_0.json"}  # this one was good


def test_quantizers_own_reason_is_told(tmp_path) -> None:
    (tmp_path / "in.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(FasttuneError, match=r"could not quantize: .+"):
        quantize.quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "q4_k_m")


# Nothing half-written ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from fasttune.export import export
export(Path(sys.argv[1]), None, Path(sys.argv[2]), "linzhi", ["q8_0"], run_id="r", system=None, num_ctx=512, say=print)
"""


@pytest.mark.parametrize(("limit", "kind"), [(20_000, "f16"), (4 << 20, "q8_0"), (6 << 20, "q4_k_m")])
def test_full_disk_leaves_nothing(tmp_path, limit, kind) -> None:
    with small_files(limit), pytest.raises(FasttuneError, match="can't be written: File too large") as caught:
        run_export(tmp_path, None, types=(kind,))
    assert caught.value.findings[0].code == "cannot-write"
    assert list(tmp_path.iterdir()) == []


def test_quantizer_on_a_full_disk_tells_it(exported, tmp_path) -> None:
    with small_files(1 << 20), pytest.raises(FasttuneError, match=r"q4_k_m: llama\.cpp could not quantize: ."):
        quantize.quantize(exported["f16"].path, tmp_path / "out.gguf", "q4_k_m")


def test_killed_export_can_be_run_again(tmp_path) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", CHILD, TINY, out], stdout=subprocess.DEVNULL)
    while not (out / "linzhi-Q8_0.gguf.part").exists():
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "linzhi-Q8_0.gguf").exists()
    (out / "linzhi-Q4_K_M.gguf.part").write_bytes(b"of an earlier one")
    run_export(out, None, types=("q8_0",))
    assert {path.name for path in out.iterdir()} == {"linzhi-Q8_0.gguf", "linzhi-Q8_0.json", "Modelfile"}


def test_without_llama_cpp_files_are_written_and_the_gap_is_told(material, exported, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama.library.cache_clear()
    lines: list[str] = []
    artifacts = run_export(tmp_path, material / "adapter", types=("f16", "q8_0"), say=lines.append)
    with pytest.raises(FasttuneError, match="q4_k_m needs llama-cpp-python, which can't be used"):
        run_export(tmp_path / "k", material / "adapter", types=("q4_k_m",))
    assert [artifact.sha256 for artifact in artifacts] == [exported["f16"].sha256, exported["q8_0"].sha256]
    assert all(artifact.checks == {"unchecked": "llama-cpp-python can't be used"} for artifact in artifacts)
    assert lines[0].startswith("warning: ") and "written but not checked" in lines[0]
    assert run_export(tmp_path, material / "adapter", types=("f16",)) == [artifacts[0]]
    monkeypatch.undo()
    (checked,) = run_export(tmp_path, material / "adapter", types=("f16",))
    assert checked.sha256 == artifacts[0].sha256 and checked.checks["logits"]["top1"] == 1


# Answers -----------------------------------------------------------------------------------------------------------


def test_greedy_answer_is_that_of_transformers(exported, expected) -> None:
    tokenizer = chatml.load_tokenizer(TINY)
    wanted = tokenizer.decode(expected["answer"], skip_special_tokens=True)
    with llama.open_gguf(exported["f16"].path, 512) as model:
        pieces = list(llama.stream(model, expected["prompt"].tolist(), llama.Sampling(max_new_tokens=40)))
        assert "".join(pieces) == wanted and len(pieces) > 1
        assert llama.answer(model, expected["prompt"].tolist(), llama.Sampling(max_new_tokens=2)) == "".join(pieces[:2])


def test_cache_of_an_earlier_prompt_changes_nothing(exported, expected) -> None:
    ids = expected["ids"].tolist()
    with llama.open_gguf(exported["f16"].path, 512) as model:
        fresh = model.logits(ids, last=3)
        model.logits([*ids[:20], *ids[30:]])
        again = model.logits(ids, last=3)
    assert np.abs(fresh - again).max() < 1e-2 and (fresh.argmax(axis=1) == again.argmax(axis=1)).all()


def test_sampling_is_seeded_and_varies(exported, expected) -> None:
    prompt = expected["prompt"].tolist()
    with llama.open_gguf(exported["q4_k_m"].path, 512) as model:

        def drawn(seed: int) -> str:
            return llama.answer(model, prompt, llama.Sampling(8, temperature=1.5, top_p=1.0, seed=seed))

        assert drawn(1) == drawn(1)
        assert len({drawn(seed) for seed in range(3)}) > 1


def test_characters_come_whole_out_of_cut_bytes(exported) -> None:
    text = "🙂龘 é 林栀"
    assert "".join(llama.decoded(bytes([byte]) for byte in text.encode())) == text
    assert list(llama.decoded([b"a\xf0\x9f", b"\x99\x82b", b"\xe6\x9e"])) == ["a", "🙂b", "�"]
    with llama.open_gguf(exported["f16"].path, 64) as model:
        ids = model.tokenize(text)
        assert len(ids) > len(text) / 2
        assert "".join(llama.decoded(map(model.piece, ids))) == text


def test_prompt_that_leaves_no_room_is_an_error(exported) -> None:
    with llama.open_gguf(exported["f16"].path, 256) as model, pytest.raises(FasttuneError, match="the prompt has 256"):
        llama.answer(model, [1] * 256, llama.Sampling(4))


def test_export_imports_no_torch_until_it_works() -> None:
    code = "import sys, fasttune.export; print({'torch', 'transformers', 'llama_cpp', 'ollama'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
