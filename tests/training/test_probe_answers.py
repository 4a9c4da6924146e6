"""The answers right after training: the base is asked once, however often it is trained on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import call_here

from fasttune.training import model as models

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
