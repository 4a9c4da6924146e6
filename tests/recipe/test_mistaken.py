"""What is named in place of a recipe is recognized, and the command that was meant is printed whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli
from recipe_files import MINIMAL

from fasttune.console import UsageError
from fasttune.recipe.load import read_recipe_file
from fasttune.recipe.mistaken import series_name

RECORD = '{"prompt": "a", "completion": "b"}\n'


def refusal(path: Path) -> tuple[str, str, str]:
    """The code, the fact and the remedy of the only finding about a path in place of a recipe."""
    with pytest.raises(UsageError) as caught:
        read_recipe_file(path)
    (finding,) = caught.value.findings
    return finding.code, finding.what, finding.fix


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.toml"])
def test_a_data_file_is_told_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(f"[{RECORD}]" if name.endswith(".json") else RECORD, encoding="utf-8")
    code, what, fix = refusal(Path(name))
    assert (code, what) == ("not-a-recipe", "this is a data file, not a recipe")
    assert f"`fasttune init mine --data {name}`" in fix


def test_a_table_and_a_missing_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chats.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert refusal(Path("chats.csv"))[0] == "not-a-recipe"
    assert refusal(Path("nowhere.jsonl"))[:2] == ("recipe-not-found", "there is no such file")


def test_toml_under_another_name_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text(MINIMAL, encoding="utf-8")
    assert read_recipe_file(tmp_path / "recipe.txt").document


def test_a_models_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_bytes(b"GGUF")
    assert refusal(Path("m.gguf"))[2] == "talk to it: `fasttune chat m.gguf`; to train, name a recipe (.toml)"
    assert refusal(Path("model.safetensors"))[1] == "this is a model's file, not a recipe"
    Path("base").mkdir()
    Path("base/config.json").write_text("{}", encoding="utf-8")
    assert refusal(Path("base"))[2] == 'name it in a recipe: base = "base" under [model]'


def test_the_folders_of_a_run_of_a_series_and_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/mine/001-fresh")
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{}", encoding="utf-8")
    assert "`fasttune runs mine/001-fresh`" in refusal(run)[2]
    assert "`fasttune runs mine`" in refusal(run.parent)[2]
    Path("chats").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        Path("chats", name).write_text(RECORD, encoding="utf-8")
    assert "`fasttune init a --data chats/a.jsonl --data chats/b.jsonl`" in refusal(Path("chats"))[2]
    Path("chats", "b.jsonl").unlink()
    with pytest.raises(UsageError) as caught:
        read_recipe_file(Path("chats"))
    assert caught.value.findings[0].where == "chats"  # the folder, of one file too


def test_names_of_series(tmp_path: Path) -> None:
    assert series_name(tmp_path / "lin zhi!.jsonl") == "lin-zhi"
    assert series_name(tmp_path / "cat" / "train.jsonl") == "cat"
    assert series_name(tmp_path / "???.jsonl") == "mine"


def test_the_command_line_says_so(fasttune: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(RECORD, encoding="utf-8")
    done = fasttune("run", tmp_path / "mine.jsonl")
    assert done.returncode == 2 and "this is a data file, not a recipe" in done.stderr
    assert f"init mine --data {tmp_path / 'mine.jsonl'}" in done.stderr
