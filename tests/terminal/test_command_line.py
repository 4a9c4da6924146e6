"""Mistakes on the command line get the right command or option; help in groups; click in the user's language."""

from __future__ import annotations

import gettext
import inspect
import json
import re
from pathlib import Path

import click
import pytest
from conftest import Cli, call_fasttune
from run_folders import write_run

from fasttune import cli
from fasttune.terminal import command_line


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("train x.toml", "did you mean `fasttune run`?"),
        ("list", "did you mean `fasttune runs`?"),
        ("help", "did you mean `fasttune --help`?"),
        ("exprt", "did you mean `fasttune export`?"),
        ("recipes/quickstart.toml", "did you mean `fasttune run recipes/quickstart.toml`?"),
        ("frobnicate", "the commands are augment, bench, "),
        ("run x.toml --learning_rate 1e-4", "write `--set train.learning_rate=…`"),
        ("run x.toml --learning-rate=1e-4", "write `--set train.learning_rate=…`"),
        ("run x.toml --lora_rank 8", "write `--set lora.r=…`"),
        ("run x.toml --jsn", "did you mean `--json`?"),
        ("run", "`fasttune run --help` shows how it is used"),
    ],
)
def test_the_right_one_is_named(fasttune: Cli, typed: str, hint: str) -> None:
    done = fasttune(*typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr and done.stderr.count("error: ") == 1


def test_errors_are_json_too(fasttune: Cli) -> None:
    for arguments in (["plan", "nowhere.toml"], ["plan", "--learning_rate", "1"], ["runs", "nobody"]):
        done = fasttune(*arguments, "--json")
        (finding,) = json.loads(done.stdout)["findings"]
        assert done.returncode == 2 and finding["code"] and finding["fix"] and "error: " in done.stderr


def test_the_help_groups_every_command_and_cuts_no_text(fasttune: Cli) -> None:
    text = fasttune("--help").stdout
    grouped = [name for _heading, texts in command_line.GROUPS for name in texts]
    assert set(grouped) <= set(cli.commands.commands) and len(grouped) == len(set(grouped))
    assert all(f"  {name} " in text for name in cli.commands.commands)
    assert "…" not in text and "..." not in text.split("\n", 2)[2] and "Examples:" in text


def test_click_speaks_the_users_language(monkeypatch: pytest.MonkeyPatch) -> None:
    for language, word in (("zh", "错误"), ("en", "error")):
        monkeypatch.setenv("FASTTUNE_LANG", language)
        monkeypatch.setenv("LANGUAGE", "")
        command_line.translate_click()
        assert gettext.gettext("error") == word
    modules = (click.core, click.exceptions, click.types, click.decorators, click.formatting, click.parser)
    source = "".join(inspect.getsource(module) for module in modules)
    plurals = [form for forms in command_line.CLICK_COUNTS for form in forms]
    written = re.sub(r'"\s+"', "", source)
    assert all(json.dumps(message) in written for message in (*command_line.CLICK_SAYS, *plurals))  # as click has them


@pytest.mark.parametrize(
    "typed",
    ["chat", "run x.toml --on-existing no", "chat x --temperature 1e", "chat x --temperature 9", "bench r --steps 1.5",
     "run x.toml y", "run x.toml --set", "runs --json=1", "run --foo", "chatt", "run x.toml --continue x"],
)  # fmt: skip
def test_every_mistake_is_told_in_chinese_alone(fasttune: Cli, typed: str) -> None:
    """Beside the names and values that were typed or may be, and the command in the hint, nothing stays in English."""
    done = fasttune(*typed.split(), FASTTUNE_LANG="zh")
    line = next(line for line in done.stderr.splitlines() if line.startswith("错误："))
    words = re.sub(r"'[^']*'|\([^)]*\)|（[^）]*）|\d\S*x\S*|x[<>=]+\d+|fasttune|FASTTUNE_\w+", "", line)
    assert done.returncode == 2 and not re.search(r"[A-Za-z]{2,}", words), line


def test_fasttune_alone_shows_its_help(fasttune: Cli) -> None:
    done = fasttune()
    assert done.returncode == 2 and done.stderr.startswith("Usage: ") and "error" not in done.stderr


def test_a_shell_completes_runs_and_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "runs")
    variables = {"_FASTTUNE_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    shown = call_fasttune(tmp_path / "runs", COMP_WORDS="fasttune chat pers", **variables).stdout
    assert "persona\n" in shown and "persona/001-fresh" in shown
    variables["COMP_CWORD"] = "4"
    shown = call_fasttune(tmp_path / "runs", COMP_WORDS="fasttune run x.toml --set train.ep", **variables).stdout
    assert "train.epochs=" in shown


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("chat x --temperature nan", "'nan' is not a valid number"),
        ("facts x --at-least inf", "is not in the range 0<=x<=1"),
        ("facts x --max-new-tokens 99999999999999", "is not in the range 1<=x<=32768"),
        ("compare x --max-new-tokens 0", "is not in the range 1<=x<=32768"),
        ("chat x --max-new-tokens 32769", "is not in the range 1<=x<=32768"),
    ],
)
def test_a_number_out_of_bounds_is_refused_before_anything_is_loaded(fasttune: Cli, typed: str, words: str) -> None:
    """NaN is within any bounds for click, and ended in a traceback of numpy; memory is held for the longest answer."""
    done = fasttune(*typed.split())
    assert done.returncode == 2 and words in done.stderr and "hint: " in done.stderr


def test_a_runs_folder_that_is_none_completes_nothing(tmp_path: Path) -> None:
    """And says nothing: a shell would print it amid the line that is being typed."""
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    context = click.Context(click.Command("runs"))
    context.params["root"] = str(tmp_path / "runs")
    assert command_line.complete_run(context, click.Option(["--x"]), "") == []


@pytest.mark.parametrize(("columns", "beside"), [("120", True), ("50", False)])
def test_an_example_is_one_line_at_any_width(
    columns: str, beside: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the text does not fit beside a long command, it stands below."""
    monkeypatch.setattr("sys.argv", ["/a/long/path/to/fasttune", "--help"])
    monkeypatch.setenv("COLUMNS", columns)
    cli.commands.main(["--help"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "init --example quickstart" in line]
    assert ("two minutes" in line) == beside
    assert all(len(line) <= 100 for line in lines)
