"""`fasttune menu` at a pseudo-terminal, from the first question to the command that is carried out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli
from kept_epochs import write_epochs
from run_folders import write_run
from series import Series
from terminal import CTRL_C, ENTER, ESC, UP, answer, type_at
from written_runs import write_run as begin

from fasttune.pipeline import RunRequest
from fasttune.runs import epochs
from fasttune.terminal import entry_menu
from fasttune.terminal.entry_menu import Commands

SUBJECT = "What do you want to work on?"


def test_from_a_data_file_to_a_plan(tmp_path: Path) -> None:
    lines = [json.dumps({"instruction": f"第{n}个问题？", "output": f"第{n}个回答。"}) for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    steps = [
        (SUBJECT, "1" + ENTER), ("write a recipe for it", "1" + ENTER),
        ("What is the name of the series?", "小灯" + ENTER),
        ("recipes/小灯.toml: not trained yet", "1" + ENTER), ("show its plan", "2" + ENTER),
        ("8 samples to train on, 0 held out", ""), (SUBJECT, UP + ENTER),
    ]  # fmt: skip
    done = type_at(steps, "menu", runs=tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.screen
    assert "fasttune init 小灯 --data train.jsonl" in done.screen.replace("'", "")
    assert (tmp_path / "recipes" / "小灯.toml").is_file()


def test_the_runs_of_a_series(tmp_path: Path) -> None:
    """The menu comes back after a command that trains nothing."""
    write_run(tmp_path / "runs")
    steps = [
        ("persona: 001-fresh finished, 2 epochs, loss 0.200", "1" + ENTER), ("chat with it", "3" + ENTER),
        ("2 epochs, 2 steps", ""), (SUBJECT, CTRL_C),
    ]  # fmt: skip
    done = type_at(steps, "menu", runs=tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 130, done.screen
    assert "fasttune runs persona" in done.screen


def test_a_series_is_trained_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one in recipes/ that names it, else by the copy of its newest run; a run without a GGUF can't chat."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    run = write_run(root)
    (run.exports / "persona-Q8_0.gguf").unlink()
    steps = [("persona: 001-fresh", "1" + ENTER), ("show its runs", "1" + ENTER)]
    arguments, screen = answer(steps, lambda: entry_menu.ask_for_command(Commands(root)))
    assert arguments == ["run", str(run.recipe), "--runs", str(root)] and "chat with it" not in screen
    recipe = tmp_path / "recipes" / "other.toml"
    recipe.parent.mkdir()
    recipe.write_text('name = "persona"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "a.jsonl"\n')
    assert entry_menu.recipe_of("persona", root) == Path("recipes/other.toml")


def write_recipe(name: str, text: str, data: str = "used.jsonl") -> None:
    head = f'name = "{name}"\n{text}\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "{data}"\n'
    Path("recipes", f"{name}.toml").write_text(head, encoding="utf-8")


def test_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes that can't be trained are no subject, and data files that a recipe names are none of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("used.jsonl", "free.jsonl"):
        (tmp_path / name).touch()
    write_recipe("good", "")
    write_recipe("first", 'strategy = "retune"')
    write_recipe("later", 'strategy = "augment"')
    write_recipe("gone", "", "nowhere.jsonl")
    (tmp_path / "recipes" / "bad.toml").write_text("nonsense")
    found, broken = entry_menu.subjects(tmp_path / "runs")
    assert list(found) == ["recipe:recipes/first.toml", "recipe:recipes/good.toml", "data:free.jsonl", "file:", "quit"]
    assert broken == ["recipes/bad.toml", "recipes/gone.toml", "recipes/later.toml"]


def test_a_long_list_is_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command has shown stays on a screen of 24 rows; every choice is one key further."""
    monkeypatch.chdir(tmp_path)
    for number in range(15):
        (tmp_path / f"{number:02d}.jsonl").touch()
    found, _broken = entry_menu.subjects(tmp_path / "runs")
    short = entry_menu.folded(found)
    assert len(found) == 17 and len(short) == 9 and list(short)[-2:] == ["more", "quit"]
    steps = [(SUBJECT, "8" + ENTER), ("14.jsonl", "e" + ENTER), ("What is the name", "lamp" + ENTER)]
    arguments, _screen = answer(steps, lambda: entry_menu.ask_for_command(Commands(tmp_path / "runs")))
    assert arguments == ["init", "lamp", "--data", "14.jsonl"]


def test_the_copy_of_a_recipe_comes_with_its_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was begun with --set: its recipe alone would be another run's."""
    monkeypatch.chdir(Series.new(tmp_path).folder)
    run = begin(RunRequest(Path("persona.toml"), ("train.max_steps=6", "lora.r=4")))
    steps = [("persona: 001-fresh", "1" + ENTER), ("show its runs", "3" + ENTER)]
    arguments, _screen = answer(steps, lambda: entry_menu.ask_for_command(Commands(Path("runs"))))
    assert arguments == ["plan", str(run.recipe), "--set", "lora.r=4", "--set", "train.max_steps=6"]


@pytest.mark.parametrize(
    ("name", "usable"), [("小灯", True), ("", False), ("a/b", False), ("..", False), ("persona", False)]
)
def test_names_of_a_new_series(tmp_path: Path, name: str, usable: bool) -> None:
    write_run(tmp_path)
    assert (entry_menu.unusable(name, tmp_path) is None) is usable


def test_a_terminal_is_needed(fasttune: Cli) -> None:
    done = fasttune("menu")
    assert done.returncode == 2 and "the menu needs a terminal" in done.stderr


VERBS = {
    "run": ("--set", "--runs"), "plan": ("--set", "--runs"), "chat": ("--runs",), "runs": ("--runs",), "init": (),
    "check": ("--set", "--json"), "diagnose": ("--runs",), "compare": ("--runs",), "doctor": ("--runs",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "key", "expected"),
    [
        ("what is wrong with it", "5", ["diagnose", "persona", "--runs", "R"]),
        ("compare its answers", "6", ["compare", "persona", "--runs", "R"]),
        ("check its data", "7", ["check", "RECIPE", "--set", "lora.r=4"]),
        ("train: continue", "1", ["run", "RECIPE", "--runs", "R", "--set", "lora.r=4"]),
    ],
)
def test_it_offers_the_commands_there_are_with_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, key: str, expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    run = write_run(root)
    steps = [("persona: 001-fresh", "1" + ENTER), (choice, key + ENTER)]
    commands = Commands(root, ("lora.r=4",), VERBS)
    arguments, screen = answer(steps, lambda: entry_menu.ask_for_command(commands))
    assert arguments == [{"R": str(root), "RECIPE": str(run.recipe)}.get(word, word) for word in expected]
    assert "write its report" not in screen  # there is no such command


def test_its_own_override_takes_the_place_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Series.new(tmp_path).folder)
    run = begin(RunRequest(Path("persona.toml"), ("train.max_steps=6", "lora.r=4")))
    steps = [("persona: 001-fresh", "1" + ENTER), ("show its runs", "1" + ENTER)]
    commands = Commands(Path("runs"), ("lora.r=16", "train.seed=7"))
    arguments, _screen = answer(steps, lambda: entry_menu.ask_for_command(commands))
    assert arguments == [
        "run", str(run.recipe), "--set", "lora.r=16", "--set", "train.max_steps=6", "--set", "train.seed=7",
    ]  # fmt: skip


def test_the_machine_and_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    commands = Commands(Path("runs"), (), VERBS)
    machine, _screen = answer([("this machine", "3" + ENTER)], lambda: entry_menu.ask_for_command(commands))
    assert machine == ["doctor"]
    steps = [("a new recipe for a.jsonl", "1" + ENTER), ("check it", "2" + ENTER)]
    checked, _screen = answer(steps, lambda: entry_menu.ask_for_command(commands))
    assert checked == ["check", "a.jsonl"]


def test_an_override_that_no_recipe_takes_is_named_at_once(fasttune: Cli) -> None:
    done = fasttune("menu", "--set", "train.learning_rat=1")
    assert done.returncode == 2 and "learning_rate" in done.stderr and "needs a terminal" not in done.stderr


def test_an_empty_folder_is_offered_the_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(entry_menu.subjects(tmp_path / "runs")[0]) == ["example:", "file:", "quit"]
    assert entry_menu.of_example("", Commands(tmp_path / "runs", (), {"init": ("--example",)})) == [
        "init",
        "--example",
        "quickstart",
    ]


def test_a_stopped_series_is_resumed_and_esc_leads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no adapter to compare; Esc in the question of a name leads back to the first question."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    write_run(tmp_path / "runs", finished=False)
    steps = [(SUBJECT, "2" + ENTER), ("What is the name", ESC), (SUBJECT, "1" + ENTER), ("train: resume", "1" + ENTER)]
    commands = Commands(tmp_path / "runs", (), {"compare": (), "diagnose": ()})
    arguments, screen = answer(steps, lambda: entry_menu.ask_for_command(commands))
    assert arguments and arguments[0] == "run" and "what is wrong with it" in screen and "compare" not in screen


def test_a_better_epoch_is_offered_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", losses=(2.0, 1.0, 0.2), held_out=(3.0, 1.0, 2.0))
    assert not entry_menu.has_epochs(run)
    write_epochs(run, (1, 2, 3), (3.0, 1.0, 2.0), steps_per_epoch=1)
    assert entry_menu.has_epochs(run) and "go back to epoch 2" in entry_menu.pick_title(run)
    commands = Commands(tmp_path / "runs")
    steps = [("epoch 2: held-out 1.000: answer after 2", "1" + ENTER)]
    arguments, _screen = answer(steps, lambda: entry_menu.ask_for_epoch(run, commands))
    assert arguments == ["pick", run.id, "--runs", str(tmp_path / "runs"), "--epoch", "2"]
    arguments, _screen = answer([("the run's own", "4" + ENTER)], lambda: entry_menu.ask_for_epoch(run, commands))
    assert arguments and arguments[-1] == "--own"
    epochs.pick(run, epochs.find_epoch(run, "2"))
    assert "go back" not in entry_menu.pick_title(run)
