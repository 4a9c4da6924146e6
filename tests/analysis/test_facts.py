"""Facts of a sheet: kept, lost, contradicted by what was answered; and asked of a real run by the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import Done, Quickstart, call_here
from run_folders import write_run

from fasttune.analysis import facts
from fasttune.analysis.answers import LoadedModel, Prompt, TorchSource
from fasttune.console import UsageError
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.export.llama import Sampling
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import documents
from fasttune.runs.outcomes import FactScores
from fasttune.runs.store import Run
from fasttune.training import generation

SHEET = """\
[[fact]]
id = "name"
text = "叫小灯"
source = "system"
questions = ["你是谁？", "你叫什么？", "怎么称呼？"]
accept = ["小灯"]
forbid = ["灯泡"]

[[fact]]
id = "nights"
text = "守了二十六夜"
questions = ["守了几夜？", "多少夜？", "几个晚上？"]
accept = ["二十六"]

[[never]]
id = "never-model"
text = "不说语言模型"
questions = ["你是什么？"]
forbid = ["语言模型"]
"""
NAME, NIGHTS, RULE = (
    ["你是谁？", "你叫什么？", "怎么称呼？"],
    ["守了几夜？", "多少夜？", "几个晚上？"],
    ["你是什么？"],
)


@pytest.fixture
def sheet(tmp_path: Path) -> FactSheet:
    (tmp_path / "facts.toml").write_text(SHEET, encoding="utf-8")
    return read_fact_sheet(tmp_path / "facts.toml")


def scored(sheet: FactSheet, *texts: str, arm: str = "tuned") -> FactScores:
    """The scores of one arm that answers the seven questions of SHEET with these texts."""
    answers = dict(zip([*NAME, *NIGHTS, *RULE], texts, strict=True))
    return facts.score(sheet, {arm: answers}, 64)


@pytest.mark.parametrize(
    ("texts", "state"),
    [
        (("小灯", "我叫“小灯”。", "不知道"), "kept"),
        (("小灯", "？", "不知道"), "lost"),
        (("小灯", "小灯", "小灯，不是灯泡"), "contradicted"),
        (("", "", ""), "lost"),
    ],
)
def test_states(sheet: FactSheet, texts: tuple[str, ...], state: str) -> None:
    scores = scored(sheet, *texts, "", "", "", "")
    assert scores.facts[0].states == {"tuned": state} and scores.facts[0].answers == {"tuned": texts}


def test_numbers_of_an_arm(sheet: FactSheet) -> None:
    scores = scored(sheet, "小灯", "小灯", "灯泡", "26夜", "二十六", "一百二十六", "我是语言模型")
    arm = scores.arms["tuned"]
    assert (arm.kept, arm.lost, arm.contradicted, arm.rules_broken) == (1, 0, 1, 1)
    assert arm.right == pytest.approx(4 / 6)
    assert scores.sha256 and scores.sheet == str(sheet.path)


def test_a_rule_holds_for_the_answers_to_all_questions(sheet: FactSheet) -> None:
    scores = scored(sheet, "我是语言模型", "", "", "", "", "我是语言模型", "我是猫")
    assert scores.rules[0].broken == {"tuned": ("我是语言模型",)}


def test_findings_are_about_what_is_served(sheet: FactSheet, tmp_path: Path) -> None:
    run = write_run(tmp_path)
    good = ("小灯", "小灯", "小灯", "26", "26", "26", "猫")
    bad = ("灯泡", "", "", "", "", "", "语言模型")
    answers = {
        arm: dict(zip([*NAME, *NIGHTS, *RULE], texts, strict=True))
        for arm, texts in {"base": bad, "base+system": bad, "tuned": bad, "tuned+system": good}.items()
    }
    scores = facts.score(sheet, answers, 64)
    assert [one.code for one in facts.findings(run, scores, at_least=1.0)] == ["no-system-prompt"]
    worse = facts.score(sheet, answers | {"tuned+system": answers["base"]}, 64)
    found = facts.findings(run, worse, at_least=0.1)
    assert [one.code for one in found][:3] == ["facts-contradicted", "facts-lost", "rule-broken"]
    assert (found[-1].code, found[-1].level) == ("facts-below", "error")
    assert "name" in found[0].what and "nights" in found[1].what and "system prompt" in found[1].fix


def test_an_arm_of_its_own_for_what_is_served_with_facts(sheet: FactSheet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def ask(source: TorchSource, prompts: Sequence[Prompt], _sampling: object) -> list[str]:
        asked.append((source.name, prompts[0].system))
        return ["26小灯"] * len(prompts)

    monkeypatch.setattr(facts, "ask", ask)
    loaded = LoadedModel(Path("base"), ModelRecipe(base="builtin:tiny"), None)
    answers = facts.ask_arms(loaded, ("S", "S and facts"), sheet, Sampling(8), "mine/001")
    assert list(answers) == ["base", "base+system", "tuned", "tuned+system", "tuned+facts"]
    assert [system for _name, system in asked] == [None, "S", None, "S", "S and facts"]
    assert facts.served_arm(facts.score(sheet, answers, 8)) == "tuned+facts"
    without = facts.ask_arms(loaded, ("S", None), sheet, Sampling(8), "mine/001")
    assert facts.served_arm(facts.score(sheet, without, 8)) == "tuned+system"


# --- a real run -------------------------------------------------------------------------------------------------------

REAL = SHEET.replace("你叫什么？", "Who are you?").replace("怎么称呼？", "你是谁？？").replace(
    'accept = ["小灯"]', 'accept = ["小灯", "Lumen"]'
)  # fmt: skip


@pytest.fixture
def cli(quickstart: Quickstart, tmp_path: Path) -> Callable[..., Done]:
    """`fasttune facts` of a copy of the quick start's run, which it writes into."""
    run = tmp_path / "runs" / "quickstart" / "001-fresh"
    shutil.copytree(quickstart.folder, run, ignore=shutil.ignore_patterns("exports", "tensorboard"))
    (tmp_path / "facts.toml").write_text(REAL, encoding="utf-8")

    def call(*arguments: str | Path) -> Done:
        return call_here(tmp_path / "runs", "facts", "quickstart", *arguments)

    return call


def test_a_run_is_asked_once_and_its_scores_are_kept(
    cli: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--file", tmp_path / "facts.toml", "--max-new-tokens", "24")
    done = cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document["arms"]) == ["base", "base+system", "tuned", "tuned+system"]
    name = document["facts"][0]
    assert name["states"]["tuned+system"] == "kept" and name["states"]["base"] == "lost"
    assert "facts-lost" in [one["code"] for one in document["findings"]]

    run = Run(tmp_path / "runs", "quickstart/001-fresh")
    kept = documents.read_scores(run)
    assert kept.facts is not None and kept.facts.facts[0].states == name["states"]
    assert kept.probes and kept.answered_by == "quickstart-Q8_0.gguf"

    monkeypatch.setattr(generation, "load", None)  # nothing is asked, so nothing is loaded
    again = cli(*arguments)
    assert again.returncode == 0, again.stderr
    assert "叫小灯" in again.stdout and "answers" not in again.stderr
    failed = cli(*arguments, "--at-least", "0.9", "--json")
    assert failed.returncode == 1 and json.loads(failed.stdout)["findings"][-1]["code"] in (
        "facts-below",
        "rule-broken",
    )


def test_a_recipe_without_a_sheet(cli: Callable[..., Done]) -> None:
    done = cli()
    assert done.returncode == 2 and "--file" in done.stderr


def test_a_broken_sheet_is_told_before_anything_is_loaded(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "facts.toml").write_text(REAL.replace("accept", "acept", 1), encoding="utf-8")
    done = cli("--file", tmp_path / "facts.toml")
    assert done.returncode == 2 and "facts.toml:6" in done.stderr and "accept" in done.stderr


def test_a_run_that_is_not_finished(tmp_path: Path, sheet: FactSheet) -> None:
    write_run(tmp_path / "runs", finished=False)
    done = call_here(tmp_path / "runs", "facts", "persona", "--file", sheet.path)
    assert done.returncode == 1 and "fasttune run" in done.stderr


def test_a_run_trained_with_the_facts_in_its_prompt_is_told_of_more_samples(sheet: FactSheet, tmp_path: Path) -> None:
    run = write_run(tmp_path, data__system_facts="facts.toml")
    answers = {"tuned": dict.fromkeys([*NAME, *NIGHTS, *RULE], "")}
    (lost,) = facts.findings(run, facts.score(sheet, answers, 64))[:1]
    assert lost.code == "facts-lost" and lost.fix.startswith("they stand in the system prompt")
    with pytest.raises(UsageError, match="stand in the trained system prompt already"):
        facts.facts(run, sheet.path, 64, prompt="facts")
    assert facts.recipe_sheet(run) == Path("facts.toml")  # which [facts] does not name
