"""What can be known before an export: every finding at once, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from exports import TINY, edit, edit_tokenizer, read_model, refusal, request, silent

from fasttune.console import FasttuneError
from fasttune.export import Artifact, export, preflight
from fasttune.export.preflight import expected_bytes
from fasttune.runs import checkpoints


def test_every_finding_is_reported_at_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    edit(base / "config.json", use_sliding_window=True, hidden_act="gelu")
    edit_tokenizer(base, lambda document: document["model"].update(dropout=0.1))
    edit(adapter / "adapter_config.json", use_dora=True, bias="all")
    findings = refusal(request(tmp_path / "out", adapter, base=base, types=("q4_k_m", "q9"), name="a/b", num_ctx=8192))
    assert [finding.code for finding in findings] == [
        "unknown-gguf-type",
        "bad-name",
        "base-unsupported",
        "base-unsupported",
        "adapter-not-mergeable",
        "adapter-not-mergeable",
        "tokenizer-unsupported",
        "bad-num-ctx",
    ]


def test_nothing_requested(tmp_path: Path) -> None:
    (finding,) = refusal(request(tmp_path / "out", types=()))
    assert finding.what == "no GGUF type is requested"


def test_template_that_is_not_chatml_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").unlink()
    (finding,) = refusal(request(tmp_path / "out", base=base))
    assert finding.code == "template-not-chatml"


def test_disk_space_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 90_000_000

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    (finding,) = refusal(request(tmp_path / "out", types=("q8_0", "q4_k_m")))
    assert finding.code == "disk-full" and finding.what == "134.7 MB are needed, 90.0 MB are free"


def test_expected_bytes_hold_every_file(exported: dict[str, Artifact]) -> None:
    shape = read_model(None)[0].shape
    for quantization, artifact in exported.items():
        assert artifact.bytes <= expected_bytes(shape, quantization) + preflight.KEY_BYTES


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    (finding,) = refusal(request(tmp_path / "out", types=("f16",)))
    assert finding.code == "not-a-folder" and (tmp_path / "out").read_text() == "a file"


def test_foreign_file_of_that_name_stays(tmp_path: Path) -> None:
    (tmp_path / "linzhi-F16.gguf").write_bytes(b"mine")
    with pytest.raises(FasttuneError, match=r"without a readable linzhi-F16\.json") as caught:
        export(request(tmp_path, types=("f16",)), silent)
    assert caught.value.findings[0].why.endswith("the file is missing")
    assert (tmp_path / "linzhi-F16.gguf").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_warnings_stop_nothing(base: Path, tmp_path: Path) -> None:
    edit_tokenizer(base, lambda document: document["model"]["vocab"].update({"<|vision_start|>": 5116}))
    plan = preflight.preflight(request(tmp_path / "out", base=base, types=("q4_k_m", "f16", "q8_0")))
    assert [warning.code for warning in plan.warnings] == ["tokenizer-lost-specials"]
    assert plan.missing_types == ("f16", "q4_k_m", "q8_0") and not plan.merged_missing
    assert not (tmp_path / "out").exists()


def test_check_before_training(base: Path, tmp_path: Path) -> None:
    preflight.check(request(tmp_path, types=("q4_k_m",)))
    edit(base / "config.json", hidden_act="gelu")
    preflight.check(request(tmp_path, base=base, types=()))  # nothing is requested of it
    with pytest.raises(FasttuneError, match="hidden_act is 'gelu'"):
        preflight.check(request(tmp_path, base=base))


@pytest.mark.parametrize("types", [(), ("q8_0",)], ids=["no file", "a file"])
def test_a_damaged_base_is_found_whether_files_are_requested_or_not(
    base: Path, tmp_path: Path, types: tuple[str, ...]
) -> None:
    """It is used for training either way; transformers and safetensors would end with a traceback."""

    def code() -> str:
        with pytest.raises(FasttuneError) as caught:
            preflight.check(request(tmp_path, base=base, types=types))
        return caught.value.findings[0].code

    config = (base / "config.json").read_text(encoding="utf-8")
    edit(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert code() == "base-unsupported"
    for text, expected in (
        (config.replace('"qwen2"', '"qwen3"'), "base-not-qwen2"),
        ('{"a": ', "base-unreadable"),
    ):
        (base / "config.json").write_text(text, encoding="utf-8")
        assert code() == expected
    (base / "config.json").write_text(config, encoding="utf-8")
    weights = (base / "model.safetensors").read_bytes()
    for content in (weights[:1_000_000], b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"):
        (base / "model.safetensors").unlink()
        (base / "model.safetensors").write_bytes(content)
        assert code() == "weights-damaged"


def test_documents_of_format_0_are_accepted(adapter: Path, tmp_path: Path) -> None:
    """They have no format number, and their digest has the files in the order of their paths."""
    first = request(tmp_path / "out", adapter, types=("f16",))
    export(first, silent)
    plan = preflight.preflight(first)
    base_first, adapter_first = preflight.input_digests(plan.source.base, first, plan.metadata)
    assert plan.missing_types == () and plan.inputs == base_first != adapter_first
    document = tmp_path / "out" / "linzhi-F16.json"
    fields = json.loads(document.read_text(encoding="utf-8"))
    del fields["format"]
    for inputs in (base_first, adapter_first):
        document.write_text(json.dumps(fields | {"inputs": inputs}), encoding="utf-8")
        assert preflight.preflight(first).missing_types == ()
    document.write_text(json.dumps(fields | {"inputs": "0" * 64}), encoding="utf-8")
    with pytest.raises(FasttuneError, match="was made from something else"):
        preflight.preflight(first)


def test_inputs_are_the_same_wherever_the_files_lie(adapter: Path, tmp_path: Path) -> None:
    """The same files under paths of another order."""
    moved = shutil.copytree(TINY, tmp_path / "zzz" / "base")
    digests = set()
    for base in (TINY, moved):
        plan = preflight.preflight(request(tmp_path / "out", adapter, base=base, types=("f16",)))
        digests.add(plan.inputs)
    assert len(digests) == 1


def test_files_that_are_not_what_was_written(adapter: Path, tmp_path: Path) -> None:
    """A flipped bit of the adapter, of a GGUF file or of the merged folder is found before anything is made of it."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (adapter / name).is_file()
    checkpoints.write_manifest(adapter, 3, ("adapter_config.json", "adapter_model.safetensors"))
    asked = request(tmp_path / "out", adapter, types=("f16",), keep_merged=True)
    export(asked, silent)
    for file, words in (
        (asked.path("f16"), r"linzhi-F16\.gguf is not what was exported"),
        (asked.merged / "model.safetensors", r"is not what was exported: model\.safetensors: checksum mismatch"),
        (adapter / "adapter_model.safetensors", r"adapter_model\.safetensors: checksum mismatch"),
    ):
        whole = file.read_bytes()
        file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 0x10]) + whole[-4:])
        with pytest.raises(FasttuneError, match=words):
            preflight.preflight(asked)
        file.write_bytes(whole)
        assert not preflight.preflight(asked).missing_types
