"""`fasttune init --example`, and the wheel that it is for: what a user has who has no clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, Cli, call_here

from fasttune.data import dataset
from fasttune.data.fact_sheet import read_fact_sheet
from fasttune.planning import examples
from fasttune.recipe.load import load_recipe

EXAMPLES = ["linzhi", "nell", "qin", "quickstart"]
PARTS = ("fasttune", "recipes", "data", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def call(folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`fasttune ARGS…` in a folder, by the console script's own function."""
    return subprocess.run(
        [sys.executable, "-c", "from fasttune.cli import main; main()", *map(str, arguments)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}, capture_output=True, text=True,
    )  # fmt: skip


def shipped(name: str) -> dict[str, bytes]:
    """Path -> content of all that belongs to an example, read from the top of the repository."""
    recipes = [path for path in (REPOSITORY / "recipes").glob("*.toml") if f"data/{name}/" in path.read_text("utf-8")]
    found = [*recipes, *(REPOSITORY / "data" / name).iterdir()]
    return {path.relative_to(REPOSITORY).as_posix(): path.read_bytes() for path in found}


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `python -m build` makes from the sdist that it makes of the working tree."""
    folder = tmp_path_factory.mktemp("build")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in (REPOSITORY / part for part in PARTS):
        if part.is_dir():
            shutil.copytree(part, folder / part.name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(part, folder)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", folder], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (folder / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as pip does it, to be first on the path."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_the_built_in_base_and_the_examples(installed: Path) -> None:
    held = {path: content for path, content in tree(installed).items() if ".dist-info/" not in path}
    package = REPOSITORY / "fasttune"
    code = {f"fasttune/{path.relative_to(package).as_posix()}": path.read_bytes() for path in package.rglob("*.py")}
    tiny = {f"fasttune/tiny/{path.name}": path.read_bytes() for path in (package / "tiny").iterdir()}
    general = {f"fasttune/general/{path.name}": path.read_bytes() for path in (package / "general").iterdir()}
    example = {f"fasttune/shipped/{path}": content for name in EXAMPLES for path, content in shipped(name).items()}
    expected = code | tiny | general | example
    assert {path: content for path, content in held.items() if path in expected} == expected
    assert not [path for path in held.keys() - expected.keys() if path.endswith((".py", ".jsonl"))]
    assert "fasttune/py.typed" in held


def test_the_wheel_writes_the_example_and_plans_it(installed: Path, tmp_path: Path) -> None:
    """As a user does it who has the wheel alone: nothing of the clone is on the path."""
    environ = {"PYTHONPATH": str(installed)}
    done = call(tmp_path, "init", "--example", "quickstart", **environ)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path) == shipped("quickstart")
    planned = call(tmp_path, "plan", "recipes/quickstart.toml", **environ)
    assert planned.returncode == 0, planned.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import fasttune; print(fasttune.__file__)"],
        cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(installed)


# --- fasttune init --example


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_lies_in_the_repository(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call_here(tmp_path / "runs", "init", "--example", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path) == shipped(name)
    said = done.stderr.splitlines()
    assert sorted(said[:-1]) == sorted(f"wrote {path}" for path in shipped(name))
    assert said[-1] == f"train it with: `fasttune run recipes/{name}.toml`"
    recipes = done.stdout.splitlines()
    assert recipes[0] == f"recipes/{name}.toml"
    assert set(recipes) == {path for path in shipped(name) if path.startswith("recipes/")}
    monkeypatch.chdir(tmp_path)
    for path in recipes:
        read = load_recipe(path)
        assert dataset.load_dataset(read.data, read.train.seed).train
        assert not read.facts.file or read_fact_sheet(Path(read.facts.file)).facts


def test_every_recipe_belongs_to_an_example() -> None:
    recipes = {f"recipes/{path.name}" for path in (REPOSITORY / "recipes").glob("*.toml")}
    assert recipes == {path for name in examples.names() for path, _content in examples.files(name)} & recipes
    assert examples.names() == EXAMPLES


def test_into_another_folder_the_command_goes_there(tmp_path: Path) -> None:
    done = call_here(tmp_path / "runs", "init", "--example", "quickstart", "--out", "first tries/lumen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "first tries" / "lumen") == shipped("quickstart")
    assert done.stdout == "first tries/lumen/recipes/quickstart.toml\n"
    command = done.stderr.splitlines()[-1].removeprefix("train it with: ").strip("`")
    assert command == "cd 'first tries/lumen' && fasttune run recipes/quickstart.toml"
    there = command.replace("fasttune run", f"{sys.executable} -m fasttune plan")
    planned = subprocess.run(
        ["sh", "-c", there],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 0, planned.stderr


def test_all_examples_fit_into_one_folder(fasttune: Cli, tmp_path: Path) -> None:
    for name in EXAMPLES:
        assert fasttune("init", "--example", name, "--out", tmp_path / "all").returncode == 0
    assert tree(tmp_path / "all") == {path: content for name in EXAMPLES for path, content in shipped(name).items()}


def test_nothing_is_overwritten(fasttune: Cli, tmp_path: Path) -> None:
    """Every file in the way is named, a link that leads nowhere too, and nothing is written beside them."""
    mine, link = tmp_path / "recipes" / "quickstart.toml", tmp_path / "data" / "quickstart" / "val.jsonl"
    for path in (mine, link):
        path.parent.mkdir(parents=True)
    mine.write_text("mine")
    link.symlink_to("nowhere")
    done = fasttune("init", "--example", "quickstart", "--out", tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert f"{mine}: the file already exists" in done.stderr and f"{link}: the file already exists" in done.stderr
    assert done.stderr.count("--out DIR") == 1
    assert tree(tmp_path) == {"recipes/quickstart.toml": b"mine"} and link.is_symlink()


@pytest.mark.parametrize("in_the_way", ["recipes", "data/quickstart"])
def test_what_can_not_be_finished_is_taken_back(fasttune: Cli, tmp_path: Path, in_the_way: str) -> None:
    """A file where a folder must be: the data that were written before it was met are removed again."""
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    done = fasttune("init", "--example", "quickstart", "--out", tmp_path)
    assert done.returncode == 1 and "can't be written" in done.stderr and "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """The system refuses the end of train.jsonl, after 32 KiB, as a full disk does."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 32; trap "" XFSZ; "$0" -m fasttune init --example linzhi', sys.executable],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "File too large" in done.stderr and done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--example", "lumen"], "the examples are: linzhi, nell, qin, quickstart"),
        (["--example", "../quickstart"], "the examples are: linzhi, nell, qin, quickstart"),
        (["--example", ""], "the examples are: linzhi, nell, qin, quickstart"),
        (["mine", "--example", "quickstart"], "leave out NAME, --data and --base"),
        (["--example", "quickstart", "--data", "x.jsonl"], "leave out NAME, --data and --base"),
        (["--example", "quickstart", "--base", "builtin:tiny"], "leave out NAME, --data and --base"),
        ([], "give NAME and --data FILE"),
        (["mine"], "give NAME and --data FILE"),
        (["--data", "x.jsonl"], "give NAME and --data FILE"),
    ],
)
def test_a_mistake_is_a_usage_error_and_writes_nothing(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = call_here(tmp_path / "runs", "init", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stdout == "" and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_names_the_examples(fasttune: Cli) -> None:
    assert all(name in fasttune("init", "--help").stdout for name in examples.names())
