"""The answers right after training: the base is asked once, however often it is trained on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, call_here

from fasttune.training import hub
from fasttune.training import model as models
from fasttune.training.probe_answers import is_cut

SHORT = [
    "train.max_steps=1", "train.keep_epochs=false", "export.gguf=[]", "probe.questions=['你是谁？','Who are you?']",
    "probe.max_new_tokens=4",
]  # fmt: skip


def test_the_base_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second training asks its adapter alone, and has the base's answers all the same; another length is asked."""
    asked: list[tuple[int, ...]] = []
    generate = models.generate

    def counted(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int) -> str:
        asked.append(tuple(prompt))
        return generate(model, tokenizer, prompt, max_new_tokens)

    monkeypatch.setattr(models, "generate", counted)

    def by_base(*overrides: str) -> list[str]:
        asked.clear()
        values = [word for one in (*SHORT, *overrides) for word in ("--set", one)]
        done = call_here(tmp_path / "runs", "run", "recipes/quickstart.toml", "--on-existing", "new", *values)
        assert done.returncode == 0, done.stderr
        newest = max((tmp_path / "runs" / "quickstart").glob("0*"))
        return [one["base"] for one in json.loads((newest / "scores.json").read_text(encoding="utf-8"))["probes"]]

    first = by_base()
    assert all(first) and len(asked) == 4
    assert by_base("train.seed=1") == first and len(asked) == 2
    by_base("probe.max_new_tokens=5")
    assert len(asked) == 4


def test_cut_answers_and_training_questions_are_told(tmp_path: Path) -> None:
    sample = json.loads((REPOSITORY / "data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    asked = [next(one["content"] for one in sample["messages"] if one["role"] == "user"), "Zebra?"]
    questions = f"probe.questions={json.dumps(asked, ensure_ascii=False)}"
    values = [word for one in (*SHORT, questions) for word in ("--set", one)]
    done = call_here(tmp_path / "runs", "run", "recipes/quickstart.toml", "--json", *values)
    assert done.returncode == 0, done.stderr
    probes = json.loads(done.stdout)["probes"]
    assert [one["is_trained"] for one in probes] == [True, False]
    assert all(one["base_cut"] and one["trained_cut"] for one in probes), "four tokens are no answer"


def test_an_answer_that_ended_is_not_cut() -> None:
    tokenizer = models.load_tokenizer(hub.TINY)
    assert not is_cut("你好。", tokenizer, 256)
    assert not is_cut("", tokenizer, 4)
    assert is_cut("a b c d e f g h", tokenizer, 4)
