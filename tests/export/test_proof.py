"""A model in Ollama is asked once after its import: the prompt as in training, the answer as the file gives it. The
server is a loopback one that speaks Ollama's API and answers by llama.cpp with the file that it was sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exports import SYSTEM, TINY, silent
from ollama_server import Handler, Server, llama_engine, running_server
from run_folders import write_run

from fasttune.console import FasttuneError
from fasttune.export import Artifact, import_into_ollama, ollama_connection
from fasttune.export.artifact import read_document
from fasttune.export.ollama import look_before_training, restore
from fasttune.export.ollama_import import import_after_training, import_run
from fasttune.export.proof import proof_findings, proof_line, prove, same_pieces
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs import documents
from fasttune.runs.store import Run

QUESTION = "你好，请介绍一下你自己。"
RECIPE = ExportRecipe(gguf=("f16",), ollama="linzhi", num_ctx=1024)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running_server() as running:
        monkeypatch.setenv("OLLAMA_HOST", running.host)
        running.engine = llama_engine(running, tmp_path)
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run with the system prompt of `exported`."""
    made = write_run(tmp_path / "runs", series="linzhi")
    documents.write(made.plan, replace(documents.read_plan(made), system=SYSTEM))
    return made


@pytest.fixture
def artifact(exported: dict[str, Artifact]) -> Artifact:
    return exported["f16"]


def proven(artifact: Artifact) -> Any:
    import_into_ollama(artifact, "linzhi", num_ctx=1024, report=silent)
    return prove(artifact, "linzhi", QUESTION, SYSTEM, TINY)


def test_a_model_that_serves_what_was_trained_passes(server: Server, artifact: Artifact) -> None:
    proof = proven(artifact)
    assert proof.passed and proof.prompt_tokens == proof.trained_prompt_tokens > 20
    assert proof.answer == proof.file_answer and proof.same_tokens == proof.tokens > 0
    assert proof_findings(proof, artifact.path) == [] and "Ollama 0.34.4 answers as the file does" in proof_line(proof)
    assert server.asked[0]["messages"] == [{"role": "user", "content": QUESTION}]  # the model's own system prompt
    assert server.asked[0]["options"]["repeat_penalty"] == 1.0
    assert read_document(artifact.path).ollama == proof


@pytest.mark.parametrize(
    "change",
    [
        {"system": None},
        {"template": "{{- range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant:"},
        {"template": "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant"},
    ],
    ids=["no system prompt", "another template", "without the last newline"],
)  # fmt: skip
def test_another_prompt_is_an_error(server: Server, artifact: Artifact, change: dict[str, Any]) -> None:
    honest = llama_engine(server, artifact.path.parent)
    server.engine = lambda created, body: honest(created | change, body)
    proof = proven(artifact)
    (finding,) = proof_findings(proof, artifact.path)
    assert (finding.code, finding.level) == ("ollama-prompt-differs", "error") and not proof.passed
    assert str(proof.trained_prompt_tokens) in finding.what and "ollama show linzhi" in finding.fix


def test_another_answer_is_a_warning(server: Server, artifact: Artifact) -> None:
    honest = llama_engine(server, artifact.path.parent)
    server.engine = lambda created, body: ("Quite another answer.", honest(created, body)[1])
    proof = proven(artifact)
    (finding,) = proof_findings(proof, artifact.path)
    assert (finding.code, finding.level) == ("ollama-answer-differs", "warning")
    assert "Quite another answer." in finding.what and "ollama:linzhi" in finding.fix


def test_a_server_that_counts_no_prompt_is_judged_by_the_answer(server: Server, artifact: Artifact) -> None:
    honest = llama_engine(server, artifact.path.parent)
    server.engine = lambda created, body: (honest(created, body)[0], None)
    proof = proven(artifact)
    assert proof.passed and "does not tell the tokens" in proof_line(proof)


@pytest.mark.parametrize(
    ("pieces", "text", "same"),
    [
        (["你", "好", "！"], "你好！", 3), (["你", "好", "！"], "你好呀", 2), (["a"], "b", 0), ([], "anything", 0),
        ([" Hi", " there"], "Hi there, you", 2), (["你好", "！"], "你", 0),
    ],
)  # fmt: skip
def test_first_tokens_that_are_the_same(pieces: list[str], text: str, same: int) -> None:
    assert same_pieces(pieces, text) == same


# A run's import ----------------------------------------------------------------------------------------------------


def test_a_run_is_imported_and_proven(server: Server, run: Run, artifact: Artifact) -> None:
    server.models["linzhi:latest"] = {"old": True}
    lines: list[str] = []
    made = import_run(run, TINY, artifact, RECIPE, lines.append)
    assert made.proof is not None and made.proof.passed and made.findings == ()
    assert made.kept == "linzhi:before-001-fresh" and "answers as the file does" in lines[-1]
    assert server.models["linzhi:latest"]["parameters"]["temperature"] == 0  # as the tiny base says


def test_a_missing_server_is_a_warning_after_a_training(
    run: Run, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    made = import_after_training(run, TINY, artifact, RECIPE, silent)
    (finding,) = made.findings
    assert (finding.code, finding.level, made.proof) == ("ollama-unreachable", "warning", None)
    assert "`ollama serve`" in finding.fix and f"export {run.id} --ollama linzhi --runs {run.root}`" in finding.fix
    with pytest.raises(FasttuneError):  # `fasttune export --ollama` is asked for nothing else
        import_run(run, TINY, artifact, RECIPE, silent)


def test_a_server_that_refuses_is_a_warning_after_a_training(server: Server, run: Run, artifact: Artifact) -> None:
    server.failure = "invalid file magic"
    (finding,) = import_after_training(run, TINY, artifact, RECIPE, silent).findings
    assert finding.level == "warning" and "invalid file magic" in finding.what and "export linzhi/001" in finding.fix


def test_a_model_that_cannot_be_asked_is_in_ollama_all_the_same(
    server: Server, run: Run, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    monkeypatch.setattr(Handler, "chat", lambda handler, body: done.wait(20))
    monkeypatch.setattr(ollama_connection, "CHAT_SECONDS", 0.3)
    made = import_run(run, TINY, artifact, RECIPE, silent)
    done.set()
    (finding,) = made.findings
    assert "linzhi:latest" in server.models and made.proof is None
    assert finding.level == "warning" and finding.what.startswith("linzhi is in Ollama, not proven: ")


def test_a_file_that_changed_is_an_error_also_after_a_training(server: Server, run: Run, artifact: Artifact) -> None:
    with pytest.raises(FasttuneError) as caught:
        import_after_training(run, TINY, replace(artifact, sha256="0" * 64), RECIPE, silent)
    assert caught.value.findings[0].code == "export-changed" and server.models == {}


# Before training, and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "is_old"), [("0.5.4", True), ("0.5.5", False), ("0.34.4-rc1", False), ("x", True)])
def test_a_server_that_is_too_old_is_told_before_training(server: Server, version: str, is_old: bool) -> None:
    server.version = version
    assert [finding.code for finding in look_before_training("linzhi")] == ["ollama-too-old"] * is_old


def test_a_name_that_is_taken_is_told_before_training(server: Server) -> None:
    server.models["linzhi:latest"] = {}
    (finding,) = look_before_training("linzhi")
    assert (finding.code, finding.level) == ("ollama-name-taken", "info")
    assert look_before_training("linzhi:v2") == []


@pytest.mark.parametrize("version", [None, [], {}])
def test_a_version_of_another_form_is_a_warning(server: Server, version: Any) -> None:
    server.version = version
    assert [finding.level for finding in look_before_training("linzhi")] == ["warning"]


def test_a_former_model_gets_its_name_back(server: Server) -> None:
    server.models |= {"linzhi:latest": {"new": True}, "linzhi:before-003": {"old": True}}
    assert restore("linzhi", "before-003", silent) == "linzhi:before-restore"
    assert server.models["linzhi:latest"] == {"old": True} and server.models["linzhi:before-restore"] == {"new": True}
    server.models["linzhi:latest"] = {"newer": True}
    assert restore("linzhi", "before-003", silent) == "linzhi:before-restore-2"
    assert server.models["linzhi:before-restore"] == {"new": True}


def test_a_tag_that_is_not_there_is_one_message(server: Server) -> None:
    server.models |= {"linzhi:latest": {}, "linzhi:before-003": {}}
    with pytest.raises(FasttuneError) as caught:
        restore("linzhi", "before-9", silent)
    (finding,) = caught.value.findings
    assert finding.what == "Ollama has no model linzhi:before-9" and "before-003" in finding.fix
    assert "POST copy" not in server.calls
