"""What an export will refuse or warn of, asked before the training: `fasttune plan` says what `fasttune run` says."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from conftest import REPOSITORY, Cli
from exports import SYSTEM, TINY
from run_folders import PLAN, PROVENANCE

from fasttune.console import FasttuneError
from fasttune.export import llama
from fasttune.export.before_training import check_before_training
from fasttune.recipe.load import load_recipe
from fasttune.runs import documents
from fasttune.runs.store import Run

RECIPE = REPOSITORY / "recipes" / "quickstart.toml"


class NearlyFull:
    """What shutil.disk_usage says of a disk with 1 MB free."""

    free = 1_000_000


@pytest.fixture
def silent_port() -> str:
    """An address of this machine where no server listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


def test_plan_and_run_refuse_a_disk_that_is_too_full(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: NearlyFull)
    planned, ran = fasttune("plan", RECIPE), fasttune("run", RECIPE)
    assert planned.returncode == ran.returncode == 1 and planned.stdout == ""
    assert "MB are needed, 1.0 MB are free" in planned.stderr
    assert planned.stderr.splitlines()[0] in ran.stderr


def test_plan_warns_of_a_silent_ollama_and_refuses_an_address_that_is_none(fasttune: Cli, silent_port: str) -> None:
    asked = ("plan", RECIPE, "--set", "export.ollama=linzhi")
    done = fasttune(*asked, OLLAMA_HOST=silent_port)
    assert done.returncode == 0 and f"warning: http://{silent_port}: no Ollama server answers" in done.stderr
    assert "nothing was started" in done.stdout
    done = fasttune(*asked, OLLAMA_HOST="127.0.0.1:99999999")
    assert done.returncode == 1 and "this is not the address of a server" in done.stderr and done.stdout == ""
    done = fasttune("plan", RECIPE, "--set", "export.ollama=no/such/name/at/all")
    assert done.returncode == 2 and "export.ollama" in done.stderr


def test_plan_says_that_llama_cpp_is_missing(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "import_failure", lambda: "libllama.so: cannot open")
    done = fasttune("plan", RECIPE)
    assert done.returncode == 0 and "the files are written but not checked" in done.stderr
    for base in ("builtin:tiny", "somebody/not-on-this-disk"):
        done = fasttune("plan", RECIPE, "--set", 'export.gguf=["q4_k_m"]', "--set", f"model.base={base}")
        assert done.returncode == 1 and "q4_k_m needs llama-cpp-python" in done.stderr, base


def test_all_reasons_are_told_at_once(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: NearlyFull)
    settings = ("export.ollama=linzhi", "model.max_seq_length=5000", "export.num_ctx=5000")
    arguments = [word for setting in settings for word in ("--set", setting)]
    for verb in ("plan", "run"):
        done = fasttune(verb, RECIPE, *arguments, OLLAMA_HOST="127.0.0.1:99999999")
        assert done.returncode == 1 and done.stderr.count("error: ") == 5, done.stderr


def test_files_that_exist_are_looked_at_where_only_they_are_missing(tmp_path: Path, adapter: Path) -> None:
    """A run that is trained, and whose export was stopped: its folder may hold anything by now."""
    run = Run(tmp_path, "quickstart/001-fresh")
    shutil.copytree(adapter, run.adapter)
    documents.write(run.plan, PLAN)
    documents.write(run.provenance, PROVENANCE)
    recipe = load_recipe(RECIPE)
    assert check_before_training(recipe, SYSTEM, TINY, tmp_path, run) == []
    run.exports.mkdir()
    (run.exports / "quickstart-Q8_0.gguf").write_bytes(os.urandom(16))
    with pytest.raises(FasttuneError) as caught:
        check_before_training(recipe, SYSTEM, TINY, tmp_path, run)
    assert [finding.code for finding in caught.value.findings] == ["export-exists"]
    assert check_before_training(recipe, SYSTEM, None, tmp_path, run) == []  # without its base nothing can be compared
