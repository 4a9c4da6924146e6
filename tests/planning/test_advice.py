"""What is advised about a plan by its own recipe and samples: epochs that suit the data, one change at a time, a larger
base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from series import RECIPE, Series
from written_runs import advice, write_parent

from fasttune.console import Finding
from fasttune.runs.store import Run


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """001-fresh of 2 epochs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_parent(tmp_path)


def by_code(findings: list[Finding], code: str) -> list[Finding]:
    """Those of one code."""
    return [one for one in findings if one.code == code]


def test_one_change_at_a_time(parent: Run) -> None:
    code = "one-change-at-a-time"
    assert not by_code(advice("train.learning_rate=1e-3", strategy="retune"), code)
    three = advice("train.learning_rate=1e-3", "lora.r=16", "train.epochs=5", strategy="retune")
    (finding,) = by_code(three, code)
    assert (finding.level, finding.where) == ("warning", "persona.toml")
    assert "train.epochs, lora.r, train.learning_rate all differ from persona/001-fresh" in finding.what
    assert "first epochs, then the learning rate, then the rank" in finding.fix


def test_epochs_for_the_data(parent: Run) -> None:
    (few,) = by_code(advice("name=new", "train.epochs=2"), "epochs-for-data")
    assert "2.0 epochs over 10 samples; 5 to 8 usually suit so many" in few.what
    assert not by_code(advice("name=new", "train.epochs=6"), "epochs-for-data")
    after = advice("continue.start=adapter", "train.epochs=4", strategy="custom")
    assert not by_code(after, "epochs-for-data"), "the adapter's 2 epochs count"


@pytest.mark.parametrize(
    ("base", "system", "answer", "advised"),
    [
        ("builtin:tiny", "你" * 400, "好。", True),
        ("builtin:tiny", "你好。", "好" * 160, True),
        ("builtin:tiny", "你好。", "好。", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "你" * 400, "好。", True),
        ("Qwen/Qwen2.5-1.5B-Instruct", "你" * 400, "好。", False),
        ("./my-model", "你" * 400, "好。", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "You are a cat. " * 60, "Yes.", False),
    ],
)
def test_a_small_base_for_a_complex_persona(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, system: str, answer: str, advised: bool
) -> None:
    monkeypatch.chdir(Series.new(tmp_path, RECIPE.replace("builtin:tiny", base)).folder)
    rows = [{"system": system, "instruction": f"问{n}", "output": answer} for n in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = by_code(advice(), "larger-base")
    assert [("a small base" in one.what, "Qwen/Qwen2.5-1.5B-Instruct" in one.fix) for one in found] == [
        (True, True)
    ] * advised


@pytest.mark.parametrize(("warmup", "told"), [("6", True), ("9", True), ("5", False), ("0.5", False)])
def test_a_warmup_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: str, told: bool) -> None:
    monkeypatch.chdir(Series.new(tmp_path).folder)
    found = by_code(advice("train.max_steps=6", f"train.warmup_steps={warmup}"), "warmup-too-long")
    assert [(one.level, one.where) for one in found] == [("warning", "persona.toml: train.warmup_steps")] * told
    assert not told or "training ends at step 6" in found[0].what


def test_what_facts_in_the_prompt_take_of_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Series.new(tmp_path, RECIPE)
    questions = '["猫叫啥？", "猫咪大名？", "怎么喊猫？"]'
    Path("facts.toml").write_text(
        f'[[fact]]\nid = "cat"\ntext = "{"猫叫定影，" * 40}"\nquestions = {questions}\naccept = ["定影"]\n',
        encoding="utf-8",
    )
    with_facts = ("facts.file=facts.toml", "export.prompt=facts")
    assert by_code(advice("facts.file=facts.toml"), "facts-in-prompt") == []
    (note,) = by_code(advice(*with_facts), "facts-in-prompt")
    assert (note.level, note.fix) == ("info", "") and "% of the context" in note.what
    (warning,) = by_code(advice(*with_facts, "export.num_ctx=512"), "facts-in-prompt")
    assert warning.level == "warning" and "export.num_ctx = 512" in warning.fix
    (trained,) = by_code(advice("data.system_facts=facts.toml"), "facts-in-prompt")
    assert (trained.where, trained.what) == ("persona.toml: data.system_facts", note.what)


def test_an_adapter_that_is_trained_further_needs_no_whole_training(parent: Run) -> None:
    codes = {"few-steps", "epochs-for-data"}
    further = advice("data.val=val.jsonl", "continue.start=adapter", "continue.add_epochs=1", strategy="custom")
    anew = advice("data.val=val.jsonl", "train.epochs=1", strategy="retune")
    assert not codes & {one.code for one in further}
    assert codes <= {one.code for one in anew}
