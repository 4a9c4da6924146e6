"""Which run is resumed, and what may not have changed meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from run_folders import PROVENANCE

from fasttune.command import OnExisting
from fasttune.console import UsageError
from fasttune.data import dataset
from fasttune.planning import resume, strategy
from fasttune.planning.resume import run_to_resume
from fasttune.planning.strategy import Plan
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import KEYS
from fasttune.runs import documents, store
from fasttune.runs.documents import Scores


def planned(folder: Path, *overrides: str, answers: Sequence[str] = "abcdefghij") -> Plan:
    (folder / "train.jsonl").write_text(
        "".join(f'{{"instruction": "q{n}", "output": "{answer}"}}\n' for n, answer in enumerate(answers))
    )
    path = folder / "x.toml"
    path.write_text(f'name = "x"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{folder}/train.jsonl"\n')
    recipe = load_recipe(path, overrides)
    return strategy.decide(recipe, dataset.load_dataset(recipe.data, recipe.train.seed), folder / "runs")


def begin(root: Path, plan: Plan) -> store.Run:
    """A run folder as it is after a training was killed."""
    run = store.create(root, plan.recipe.name, plan.recipe.strategy)
    documents.write(run.plan, plan.document())
    documents.write(run.provenance, PROVENANCE)
    return run


def test_what_happens_to_an_existing_series(tmp_path: Path) -> None:
    plan, root = planned(tmp_path), tmp_path / "runs"
    assert run_to_resume(root, plan, None) is None
    stopped = begin(root, plan)
    assert run_to_resume(root, plan, None) == stopped
    assert run_to_resume(root, plan, "resume") == stopped
    assert run_to_resume(root, plan, "new") is None
    with pytest.raises(UsageError, match="x has 1 run"):
        run_to_resume(root, plan, "stop")
    stopped.adapter.mkdir()
    assert run_to_resume(root, plan, None) == stopped  # trained, its files not made yet
    documents.write(stopped.scores, Scores((), None))
    choices: tuple[OnExisting | None, ...] = (None, "resume", "stop")
    for choice in choices:
        with pytest.raises(UsageError, match="the newest is x/001-fresh"):
            run_to_resume(root, plan, choice)
    assert run_to_resume(root, plan, "new") is None


def test_a_run_that_wrote_no_provenance_is_not_resumed(tmp_path: Path) -> None:
    plan, root = planned(tmp_path), tmp_path / "runs"
    begin(root, plan).provenance.unlink()
    with pytest.raises(UsageError, match="x has 1 run"):
        run_to_resume(root, plan, "resume")


def test_a_changed_recipe_does_not_resume_and_names_every_difference(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    begin(root, planned(tmp_path))
    with pytest.raises(UsageError) as caught:
        run_to_resume(root, planned(tmp_path, "lora.r=4", "train.batch_size=3", "train.save_steps=1"), None)
    assert [finding.where for finding in caught.value.findings] == [
        "x/001-fresh: lora.r", "x/001-fresh: lora.alpha", "x/001-fresh: train.batch_size",
    ]  # fmt: skip
    assert {finding.code for finding in caught.value.findings} == {"resume-differs"}
    with pytest.raises(
        UsageError, match="x/001-fresh: samples: some of the 10 samples of x/001-fresh are changed"
    ) as caught:
        run_to_resume(root, planned(tmp_path, answers="abcdefghiX"), None)
    assert caught.value.findings[0].fix.startswith("restore the data files that were edited; `")


def test_other_general_conversations_are_other_data(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    begin(root, planned(tmp_path, "data.replay=0.1"))
    assert run_to_resume(root, planned(tmp_path, "data.replay=0.1"), None) is not None
    with pytest.raises(UsageError) as caught:
        run_to_resume(root, planned(tmp_path, "data.replay=0.2"), None)
    assert [one.where for one in caught.value.findings] == ["x/001-fresh: data.replay", "x/001-fresh: samples"]


def test_settings_that_may_differ_are_settings() -> None:
    assert all(any(key.startswith(name) for key in KEYS) for name in resume.MAY_DIFFER)


def test_data_that_moved_is_the_same_data(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    stopped = begin(root, planned(tmp_path))
    (tmp_path / "moved").mkdir()
    there = planned(tmp_path / "moved")
    assert run_to_resume(root, there, None) == stopped


def test_a_run_keeps_the_system_prompt_that_it_was_begun_with(tmp_path: Path) -> None:
    sheet = tmp_path / "facts.toml"
    questions = '["猫叫啥？", "猫咪大名？", "怎么喊猫？"]'
    sheet.write_text(
        f'[[fact]]\nid = "cat"\ntext = "猫叫定影"\nquestions = {questions}\naccept = ["定影"]\n', encoding="utf-8"
    )
    plan = planned(tmp_path, f"facts.file={sheet}")
    run = begin(tmp_path / "runs", plan)
    assert resume.other_prompt(None, plan) == resume.other_prompt(run, plan) == []
    (finding,) = resume.other_prompt(run, planned(tmp_path, f"facts.file={sheet}", "export.prompt=facts"))
    assert (finding.code, finding.level) == ("other-served-prompt", "warning")
    assert "--set export.prompt=facts" in finding.fix and "--on-existing new" in finding.fix
