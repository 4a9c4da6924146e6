"""The document beside a GGUF file, written and read again; one of format 0 is still read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.console import FasttuneError
from fasttune.export import Artifact
from fasttune.export.artifact import (
    gguf_files,
    is_of_served_adapter,
    is_unchanged,
    publish,
    read_artifact,
    read_document,
)
from fasttune.runs import epochs


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A published file."""
    partial, path = tmp_path / "linzhi-F16.gguf.part", tmp_path / "linzhi-F16.gguf"
    partial.write_bytes(b"GGUF")
    digest = hashlib.sha256(b"GGUF").hexdigest()
    made = Artifact(path, "f16", digest, 4, "linzhi/001-fresh", "你好", {"unchecked": "a reason"})
    publish(partial, made, Path("/models/base"), "a digest", "of the weights")
    return made


def test_published_file_is_read_as_it_was(artifact: Artifact) -> None:
    folder = artifact.path.parent
    assert {path.name for path in folder.iterdir()} == {"linzhi-F16.gguf", "linzhi-F16.json"}
    assert read_artifact(artifact.path) == artifact
    fields = json.loads((folder / "linzhi-F16.json").read_text(encoding="utf-8"))
    assert list(fields) == [
        "format", "path", "type", "sha256", "bytes", "run_id", "system", "checks", "base", "inputs", "versions",
        "figures", "imatrix", "ollama", "adapter",
    ]  # fmt: skip
    assert (fields["path"], fields["base"], fields["inputs"]) == ("linzhi-F16.gguf", "/models/base", "a digest")
    assert set(fields["versions"]) >= {"gguf", "llama-cpp-python", "numpy"}


def test_document_without_a_format_is_read(artifact: Artifact) -> None:
    document = artifact.path.with_suffix(".json")
    fields = json.loads(document.read_text(encoding="utf-8"))
    del fields["format"]
    document.write_text(json.dumps(fields), encoding="utf-8")
    assert read_artifact(artifact.path) == artifact
    fields["format"] = 99
    document.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(FasttuneError, match="newer fasttune"):
        read_artifact(artifact.path)


def test_changed_file_has_another_checksum(artifact: Artifact) -> None:
    document = read_document(artifact.path)
    assert is_unchanged(artifact.path, document)
    artifact.path.write_bytes(b"gguf")
    assert not is_unchanged(artifact.path, document)


def test_a_file_is_served_while_the_adapter_that_it_was_made_of_is(tmp_path: Path) -> None:
    """A file without a document, or with one of before, was made of the run's own adapter."""
    run = write_run(tmp_path)
    first, second = write_epochs(run, (1, 2))
    (own,) = gguf_files(run)
    made = {own: [True, False, True]}
    for name, adapter, served in (
        ("persona-epoch-1-Q8_0", epochs.weights_digest(first.folder), [False, True, False]),
        ("persona-Q6_K", epochs.weights_digest(second.folder), [True, False, True]),
        ("persona-F16", "", [True, False, True]),
    ):
        partial, path = run.exports / "x.part", run.exports / f"{name}.gguf"
        partial.write_bytes(b"GGUF")
        publish(partial, Artifact(path, "q8_0", "0" * 64, 4, run.id, None, {}), Path("/b"), "inputs", adapter)
        made[path] = served
    assert set(gguf_files(run)) == set(made)
    for step, chosen in enumerate((None, first, None)):
        epochs.pick(run, chosen)
        assert {path: is_of_served_adapter(run, path) for path in made} == {
            path: served[step] for path, served in made.items()
        }
