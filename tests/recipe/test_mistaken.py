"""What is named in place of a recipe: data, a model, the folder of a run; each gets the command that was meant."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import Cli
from run_folders import write_run

from fasttune.console import UsageError
from fasttune.recipe.load import load_recipe

LINE = '{"prompt": "who?", "completion": "me"}\n'


def refusal(path: str) -> tuple[str, str, str]:
    """(code, what, fix) of the one error about a path that is no recipe."""
    with pytest.raises(UsageError) as refused:
        load_recipe(path)
    (finding,) = refused.value.findings
    assert finding.where == path
    return finding.code, finding.what, finding.fix


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("my.jsonl", LINE, "init my --data my.jsonl"),
        ("my data.json", f"[{LINE}]", "init my-data --data 'my data.json'"),
        ("lin/train.jsonl", LINE, "init lin --data lin/train.jsonl"),
        ("rows.csv", "prompt,completion\nwho?,me\n", "init rows --data rows.csv"),
        ("talk.txt", "She said hello.\n", "init talk --data talk.txt"),
        ("no_suffix", " \n" + LINE, "init no_suffix --data no_suffix"),
        ("林栀.jsonl", "", "init 林栀 --data 林栀.jsonl"),
    ],
)
def test_a_data_file(name: str, text: str, command: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    code, what, fix = refusal(name)
    assert (code, what) == ("not-a-recipe", "this is a data file, not a recipe")
    assert re.findall("`(.*)`", fix) == [shlex.join(["fasttune", *shlex.split(command)])]


def test_its_command_makes_a_recipe(fasttune: Cli, folder: Path) -> None:
    """The printed command, as it stands, and then the one that this prints: planned."""
    Path("my.jsonl").write_text("".join(LINE.replace("who", f"who {n}") for n in range(12)), encoding="utf-8")
    said = fasttune("run", "my.jsonl", cwd=folder)
    assert said.returncode == 2 and said.stderr.count("error: ") == 1
    (line,) = re.findall("`fasttune (.*)`", said.stderr)
    made = fasttune(*shlex.split(line), "--base", "builtin:tiny", cwd=folder)
    (line,) = re.findall("`fasttune run (.*)`", made.stderr)
    assert fasttune("plan", *shlex.split(line), cwd=folder).returncode == 0


def test_a_data_file_that_is_not_there() -> None:
    code, what, fix = refusal("nowhere.jsonl")
    assert (code, what) == ("recipe-not-found", "there is no such file")
    assert fix.endswith("one for a data file is made by `fasttune init nowhere --data nowhere.jsonl`")


def test_a_models_files(folder: Path) -> None:
    Path("mine.gguf").write_bytes(b"GGUF")
    assert "`fasttune chat mine.gguf`" in refusal("mine.gguf")[2]
    assert "`model.base`" in refusal("adapter_model.safetensors")[2]
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}", encoding="utf-8")
    assert 'base = "base" under [model]' in refusal("base")[2]


def test_folders_of_a_run_of_a_series_and_of_data(fasttune: Cli, folder: Path) -> None:
    run = write_run(folder / "runs")
    (run.folder / "recipe.toml").touch()
    _code, what, fix = refusal("runs/persona/001-fresh")
    assert what == "this is the folder of a run, not a recipe"
    assert "its recipe is runs/persona/001-fresh/recipe.toml" in fix
    _code, what, more = refusal("runs/persona")
    assert what == "this is the folder of a series, not a recipe"
    for line in re.findall("`fasttune (.*)`", fix + "\n" + more):
        assert "001-fresh" in fasttune(*shlex.split(line), cwd=folder).stdout
    (folder / "data").mkdir()
    for name in ("a.jsonl", "b.json"):
        (folder / "data" / name).write_text(LINE, encoding="utf-8")
    with pytest.raises(UsageError, match="a folder of data files") as refused:
        load_recipe("data")
    assert "--data data/a.jsonl --data data/b.json`" in refused.value.findings[0].fix


def test_toml_is_a_recipe_whatever_its_name() -> None:
    Path("mine.txt").write_text(
        'name = "mine"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = "a.jsonl"\n', encoding="utf-8"
    )
    assert load_recipe("mine.txt").name == "mine"
