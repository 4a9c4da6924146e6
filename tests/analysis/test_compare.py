"""`fasttune compare`: real models side by side, by torch, llama.cpp and a server that speaks Ollama's API."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Done, Quickstart, call_here
from ollama_server import running_server

from fasttune.analysis import compare, held_out
from fasttune.analysis.answers import LoadedModel
from fasttune.analysis.compare import Request
from fasttune.console import FasttuneError
from fasttune.runs import documents
from fasttune.runs.store import Run
from fasttune.training import generation

QUESTIONS = "# two of them\n你是谁？\n\nWho are you?\n你是谁？\n"


@pytest.fixture
def cli(quickstart: Quickstart, tmp_path: Path) -> Callable[..., Done]:
    """`fasttune compare` of two questions and three held-out samples; nothing is written into the shared run."""
    (tmp_path / "questions.txt").write_text(QUESTIONS, encoding="utf-8")
    cache = str(tmp_path / "cache")

    def call(*names: str | Path, ollama: str = "") -> Done:
        short = ("--questions", tmp_path / "questions.txt", "--max-new-tokens", "16", "--held-out", "3")
        root = quickstart.folder.parent.parent
        return call_here(root, "compare", *names, *short, XDG_CACHE_HOME=cache, OLLAMA_HOST=ollama)

    return call


@pytest.fixture
def root(quickstart: Quickstart) -> Path:
    return quickstart.folder.parent.parent


def document(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_a_run_beside_its_base(cli: Callable[..., Done], quickstart: Quickstart) -> None:
    found = document(cli("quickstart", "--json"))
    assert found["models"] == ["base", "quickstart/001-fresh"]
    assert [one["question"] for one in found["questions"]] == ["你是谁？", "Who are you?"]
    assert all(len(texts) == 2 for one in found["questions"] for texts in one["answers"].values())
    base, tuned = (found["figures"][name] for name in found["models"])
    assert tuned["loss"] < base["loss"] and tuned["chrf"] > base["chrf"] and tuned["accuracy"] > base["accuracy"]
    assert tuned["perplexity"] == pytest.approx(math.exp(tuned["loss"]))
    assert tuned["length"] > 0 and 0 <= tuned["repetition"] <= 1 and 0 < tuned["distinct_openings"] <= 1
    assert set(base["general"]) == {"zh", "en"} and tuned["general"]["en"] > base["general"]["en"], "it has forgotten"
    assert found["measure"] == "loss" and found["differences"][0]["sample"].startswith("data/quickstart/val.jsonl:")
    kept = documents.read_scores(Run(quickstart.folder.parent.parent, "quickstart/001-fresh")).held_out
    assert kept is not None
    by_name = {one.sample: (one.loss, one.base_loss) for one in kept.samples}
    values = found["differences"][0]["values"]
    assert by_name[found["differences"][0]["sample"]] == (values["quickstart/001-fresh"], values["base"])
    gaps = [abs(one["values"]["base"] - one["values"]["quickstart/001-fresh"]) for one in found["differences"]]
    assert gaps == sorted(gaps, reverse=True) and len(gaps) == 3


def test_base_and_adapter_are_loaded_once_and_freed(cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    load, release = generation.load, LoadedModel.release
    calls: list[str] = []

    def counted_load(*given: Any) -> Any:
        calls.append("load")
        return load(*given)

    def counted_release(loaded: LoadedModel) -> None:
        calls.append("release")
        release(loaded)

    monkeypatch.setattr(generation, "load", counted_load)
    monkeypatch.setattr(LoadedModel, "release", counted_release)
    assert cli("quickstart", "--seeds", "0", "--json").returncode == 0
    assert calls == ["load", "release"]


def test_an_adapter_and_its_file_are_nearly_the_same(cli: Callable[..., Done], quickstart: Quickstart) -> None:
    """Loss and answers come from torch on one side, from llama.cpp on the other."""
    found = document(
        cli("quickstart", quickstart.folder / "exports" / "quickstart-Q8_0.gguf", "--seeds", "0", "--json")
    )
    adapter, file = found["figures"].values()
    assert file["loss"] == pytest.approx(adapter["loss"], rel=0.02)
    assert [len(set(map(tuple, one["answers"].values()))) for one in found["questions"]] == [1, 1]


def test_tables_for_people_and_nothing_asked_twice(cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    cli("quickstart@290", "base", "--seeds", "0")
    monkeypatch.setattr("fasttune.training.generation.load", None)
    done = cli("quickstart@290", "base", "--seeds", "0")
    assert done.returncode == 0, done.stderr
    assert "loss on general conversations in English" in done.stdout
    assert "held-out loss" in done.stdout and "quickstart/001-fresh@290" in done.stdout
    assert "data/quickstart/val.jsonl:" in done.stdout


def test_a_model_in_ollama_has_answers_and_no_loss(cli: Callable[..., Done]) -> None:
    with running_server() as server:
        server.models["lumen:latest"] = {}
        found = document(cli("quickstart", "ollama:lumen", "--seeds", "0", "--json", ollama=server.host))
        assert all(len(body["messages"]) == 1 for body in server.asked[:2])  # its own system prompt
    lumen = found["figures"]["ollama:lumen"]
    assert lumen["loss"] is None and lumen["chrf"] is not None and found["measure"] == "chrf"
    assert found["questions"][1]["answers"]["ollama:lumen"] == ["WHO ARE YOU?"]


def test_facts_of_both(cli: Callable[..., Done], tmp_path: Path, quickstart: Quickstart) -> None:
    (tmp_path / "facts.toml").write_text(
        '[[fact]]\nid = "name"\ntext = "叫小灯"\nquestions = ["你是谁？", "Who are you?", "介绍一下你自己"]\naccept = ["小灯", "Lumen"]\n',
        encoding="utf-8",
    )
    found = document(cli("quickstart", "--facts", "--sheet", tmp_path / "facts.toml", "--seeds", "0", "--json"))
    kept = {name: (one["facts_kept"], one["facts"]) for name, one in found["figures"].items()}
    assert kept == {"base": (0, 1), "quickstart/001-fresh": (1, 1)}


@pytest.mark.parametrize(
    ("names", "said"),
    [(("base",), "name two models"), (("quickstart", "quickstart"), "name two models"),
     (("quickstart", "quickstart/001"), "both names"), (("quickstart", "nothing"), "no run"), (("a", "b", "c"), "one model or two")],
)  # fmt: skip
def test_names_that_can_not_be_compared(cli: Callable[..., Done], names: tuple[str, ...], said: str) -> None:
    done = cli(*names)
    assert done.returncode == 2 and said in done.stderr


def test_blind_without_a_terminal(cli: Callable[..., Done]) -> None:
    done = cli("quickstart", "--blind")
    assert done.returncode == 2 and "--blind" in done.stderr


# --- questions and held-out samples, without a model ------------------------------------------------------------------


def test_the_recipes_questions_come_first_and_the_standard_ones_in_their_language(root: Path) -> None:
    run = Run(root, "quickstart/001-fresh")
    asked = compare.questions_for(Request(("quickstart",), root), run)
    assert asked[:4] == ["你是谁？", "你每天做什么？", "什么是勇气？", "Who are you?"]
    assert "晚安" in asked and "Good night" not in asked and len(asked) == len(set(asked))


@pytest.mark.parametrize(("language", "expected"), [("zh", "晚安"), ("en", "Good night")])
def test_without_a_run_the_users_language_decides(
    language: str, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", language)
    assert expected in compare.questions_for(Request(("a", "b"), root), None)


def test_a_file_without_a_question(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("# nothing\n")
    with pytest.raises(FasttuneError) as refused:
        compare.questions_for(Request(("a",), tmp_path, questions=tmp_path / "q.txt"), None)
    assert refused.value.findings[0].code == "no-questions"


def test_held_out_samples_are_taken_evenly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    run = Run(root, "quickstart/001-fresh")
    every, findings = held_out.load(run, 10_000)
    some, _findings = held_out.load(run, 3)
    assert not findings and 1 < len(some.samples) <= 3 and set(some.samples) < set(every.samples)
    assert held_out.load(run, 0)[0].samples == ()
    first = every.samples[0].messages
    assert every.prompts[0].question == first[1].content and every.references[0] == first[2].content


def test_held_out_samples_that_are_gone_are_a_warning(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, (finding,) = held_out.load(Run(root, "quickstart/001-fresh"), 3)
    assert found.samples == () and (finding.code, finding.level) == ("no-held-out-data", "warning")


def test_changed_data_is_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    run = Run(root, "quickstart/001-fresh")
    before = documents.read_provenance(run)
    monkeypatch.setattr(
        documents, "read_provenance", lambda run: replace(before, data=replace(before.data, fingerprint="x"))
    )
    _found, (finding,) = held_out.load(run, 3)
    assert finding.code == "other-data"
