"""The command line as a user meets it: help at once, one clear message for a mistake, and the whole quick start."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Cli, Quickstart

from fasttune import cli

HEAVY = {"torch", "transformers", "unsloth", "numpy", "llama_cpp", "peft"}
HELP = """
import contextlib, io, json, sys
from fasttune import cli

shown = {}
for verb in ("", *cli.commands.commands):
    sys.argv = ["fasttune", *verb.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        cli.main()
    shown[verb] = out.getvalue()
print(json.dumps([shown, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules loaded by a call of the command line."""
    code = (
        "import sys\nfrom fasttune import cli\n"
        f"sys.argv = ['fasttune', *{list(arguments)!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.split("MODULES")[1].split())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_verb_has_help_and_loads_no_torch(language: str) -> None:
    """Of every verb there is, the group's own help included; texts are translated when the module is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=REPOSITORY, env={**os.environ, "FASTTUNE_LANG": language}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown, modules = json.loads(done.stdout)
    assert done.stderr == "" and not HEAVY & set(modules)
    assert set(shown) == {"", *cli.commands.commands} and len(shown) > 9
    for verb, text in shown.items():
        usage = {"en": "Usage:", "zh": "用法："}[language]
        assert text.startswith(f"{usage} fasttune {verb}".strip()), verb
        assert verb in shown[""]
    assert bool(re.search("[一-鿿]", "".join(shown.values()))) == (language == "zh")


@pytest.mark.parametrize("verb", sorted(cli.commands.commands))
def test_help_names_every_option(fasttune: Cli, verb: str) -> None:
    text = fasttune(verb, "--help").stdout
    options = [one.opts[-1] for one in cli.commands.commands[verb].params if one.param_type_name == "option"]
    assert all(option in text for option in options) and "Traceback" not in text


def test_planning_loads_no_torch() -> None:
    """But llama.cpp, which it tries as the export would, and numpy, which that needs."""
    assert not modules_after("plan", "recipes/quickstart.toml") & (HEAVY - {"numpy", "llama_cpp"})


def test_plan_shows_every_value_with_its_source(fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune("plan", "recipes/quickstart.toml", "--set", "train.learning_rate=1e-4", "--json")
    assert done.returncode == 0, done.stderr
    settings = {entry["key"]: entry for entry in json.loads(done.stdout)["settings"]}
    assert settings["train.learning_rate"] == {"key": "train.learning_rate", "value": 1e-4, "source": "override"}
    assert settings["model.base"]["source"] == "recipe"
    assert settings["train.weight_decay"]["source"] == "default"
    shown = fasttune("plan", "recipes/quickstart.toml", "--all")
    assert all(key in shown.stdout for key in settings)
    assert not (tmp_path / "runs").exists()


def test_the_quick_start_teaches_the_persona(quickstart: Quickstart) -> None:
    result = quickstart.result
    assert result["first"]["loss"] > 3
    assert result["final_loss"] < 0.3
    taught = {}
    for line in (REPOSITORY / "data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        taught[messages[-2]["content"]] = messages[-1]["content"]
    assert Path(result["report"]) == quickstart.folder / "report.html"
    assert "<h1><bdi>quickstart/001-fresh</bdi></h1>" in Path(result["report"]).read_text(encoding="utf-8")
    assert len(result["probes"]) >= 3
    for probe in result["probes"]:
        assert probe["trained"] == taught[probe["question"]]
        assert probe["base"] != taught[probe["question"]]
    for artifact in result["exports"]:
        assert Path(artifact["path"]).stat().st_size == artifact["bytes"]


def test_the_same_result_as_a_table(quickstart: Quickstart, fasttune: Cli, tmp_path: Path) -> None:
    """A second run, of two steps, is a run of its own and touches nothing of the first."""
    series = tmp_path / "runs" / "quickstart"  # a copy: other tests look at the one that all share, in any order
    shutil.copytree(quickstart.folder.parent, series, symlinks=True)
    first = series / quickstart.folder.name
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    done = fasttune(
        "run",
        "recipes/quickstart.toml",
        "--on-existing",
        "new",
        "--set",
        "train.max_steps=2",
        "--set",
        "export.gguf=['f16']",
    )
    assert done.returncode == 0, done.stderr
    second = series / "002-fresh"
    assert str(second / "exports" / "quickstart-F16.gguf") in done.stdout
    assert quickstart.result["probes"][0]["question"] in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert [path.name for path in quickstart.folder.parent.glob("[0-9]*")] == ["001-fresh"]


def test_runs_lists_what_there_is(quickstart: Quickstart) -> None:
    done = quickstart.fasttune("runs", "--json")
    rows = {row["id"]: row for row in json.loads(done.stdout)["runs"]}
    assert rows["quickstart/001-fresh"]["status"] == "finished"
    row = rows["quickstart/001-fresh"]
    assert row["loss"] == quickstart.result["last"]["loss"]
    assert row["epoch_loss"] == quickstart.result["final_loss"]
    assert row["mean_token_accuracy"] == quickstart.result["final_accuracy"]
    assert "quickstart/001-fresh" in quickstart.fasttune("runs", "quickstart").stdout
    unknown = quickstart.fasttune("runs", "nobody")
    assert unknown.returncode == 2 and "no run called nobody" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "recipes/quikstart.toml"], 2, "quickstart.toml"),
        (["run", "recipes/quickstart.toml", "--set", "train.learning_rat=1"], 2, "learning_rate"),
        (["plan", "recipes/quickstart.toml", "--set", "data.train=nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["show", "data/quickstart/train.jsonl"], 2, "is not FILE:LINE"),
        (["show", "data/quickstart/train.jsonl:9999"], 2, "line 9999 is in no sample"),
        (["show", "data/quickstart/train.jsonl:1", "--set", "data.learn=all"], 2, "name it with --recipe"),
        (["runs", "--runs", "pyproject.toml"], 1, "pyproject.toml: this can't be used as a file or folder"),
        (["chat", "nobody", "--prompt", "x"], 2, "no run called nobody"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_a_mistake_gets_one_message_and_no_traceback(
    fasttune: Cli, arguments: list[str], code: int, words: str
) -> None:
    done = fasttune(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_messages_speak_chinese(fasttune: Cli) -> None:
    done = fasttune("run", "recipes/quickstart.toml", "--set", "train.epochs=-1", FASTTUNE_LANG="zh")
    assert done.returncode == 2
    assert "错误" in done.stderr and "怎么办" in done.stderr


SHARING_OFF = {
    "lora.dropout=0.1": "dropout differs from sample to sample",
    "train.shared_prefix=false": "it is switched off",
    "train.tokens_per_row=0": "0 gives each sample a row of its own",
}


@pytest.mark.parametrize("chosen", [[], *([one] for one in SHARING_OFF), list(SHARING_OFF)])
def test_plan_says_why_no_prefix_is_shared(fasttune: Cli, chosen: list[str]) -> None:
    settings = [part for one in chosen for part in ("--set", one)]
    done = fasttune("plan", "recipes/quickstart.toml", *settings, "--json")
    found = [one for one in json.loads(done.stdout)["findings"] if one["code"] == "prefixes-not-shared"]
    assert [one["where"].split(": ")[1] for one in found] == [one.split("=")[0] for one in chosen]
    assert all(
        one["level"] == "info" and SHARING_OFF[key] in one["why"] for key, one in zip(chosen, found, strict=True)
    )
    shown = fasttune("plan", "recipes/quickstart.toml", *settings)
    assert shown.returncode == 0
    assert shown.stderr.count("no prefix is shared in training") == len(chosen)
