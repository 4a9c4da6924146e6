"""Probe answers in scores.json: those of the file that is served, of the adapter, and of the untrained base."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, Quickstart
from run_folders import write_run

from fasttune.analysis import probe
from fasttune.data.tokenize import prompt_tokens
from fasttune.export import Artifact
from fasttune.runs import documents
from fasttune.runs.documents import Probe, Scores
from fasttune.runs.store import Run
from fasttune.training import hub
from fasttune.training import model as models
from fasttune.training.progress import PhaseTimer


def test_scores_hold_the_answers_of_base_and_file(quickstart: Quickstart) -> None:
    scores = json.loads((quickstart.folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["probes"] == quickstart.result["probes"]
    assert scores["answered_by"] == "quickstart-Q8_0.gguf"


def test_the_base_answers_are_the_bases_own(quickstart: Quickstart) -> None:
    """The answers of a run with its adapter switched off are those of plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = models.load_tokenizer(hub.TINY)
    base = AutoModelForCausalLM.from_pretrained(hub.TINY, dtype=torch.float32)
    first = json.loads((REPOSITORY / "data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    system = first["messages"][0]["content"]
    for answered in quickstart.result["probes"]:
        ids = torch.tensor([prompt_tokens(answered["question"], system, tokenizer)])
        output = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=256, do_sample=False)
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == answered["base"]


@pytest.mark.parametrize(("trained", "answered_by"), [("by the adapter", "adapter"), ("", None)])
def test_without_a_file_the_answers_stay(tmp_path: Path, trained: str, answered_by: str | None) -> None:
    run = Run(tmp_path, "linzhi/001-fresh")
    run.folder.mkdir(parents=True)
    probes = (Probe("who?", "by the base", trained),)
    documents.write(run.scores, Scores(probes))
    assert probe.probe(run, hub.TINY, [], 16, PhaseTimer()) == probes
    assert documents.read_scores(run) == Scores(probes, answered_by)


def test_the_answers_of_the_file_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions to a large model take minutes: which one is being answered is shown."""
    run = write_run(tmp_path)
    documents.write(run.scores, Scores(tuple(Probe(question, "by the base", "") for question in ("who?", "where?"))))
    artifact = Artifact(run.exports / "persona-Q8_0.gguf", "q8_0", "0" * 64, 1, run.id, None, {})
    monkeypatch.setattr(probe, "open_gguf", lambda _path, _context: contextlib.nullcontext())
    monkeypatch.setattr(probe, "answer", lambda _model, _prompt, _sampling: " me \n")
    shown: list[str] = []

    class Phases(PhaseTimer):
        @contextlib.contextmanager
        def __call__(self, key: str, name: str) -> Iterator[Callable[[str], None]]:
            yield shown.append

    probes = probe.probe(run, hub.TINY, [artifact], 16, Phases())
    assert [one.trained for one in probes] == ["me", "me"]
    assert shown == ["answering the probe questions: 1 of 2", "answering the probe questions: 2 of 2"]
