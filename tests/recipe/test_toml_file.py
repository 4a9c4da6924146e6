"""A TOML file read strictly: the line of each key, a hint for every syntax error, and files that can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import cpu_limit
from recipe_files import FULL, MINIMAL, tomllib

from fasttune.console import UsageError
from fasttune.recipe.toml_file import REFUSED, key_lines, read_toml, syntax_fix, toml_value


def test_key_lines() -> None:
    text = (
        '# [no.table]\na = 1 # b = 2\n"c" = "x = y # ["\nd.e = [\n  "f = 1", # ]\n  "]",\n]\n[t . "u"]\nv = """\n[w]\n'
        "x = 1\n\"quoted\" \\\" ''' \"\"\"\ny = '''\nz = \"\"\" '''\n[[list]]\nk = { l = 1, m = [2] }\nn = 1\n"
    )
    tomllib.loads(text)
    expected = {"a": 2, "c": 3, "d.e": 4, "t.u": 8, "t.u.v": 9, "t.u.y": 13, "list": 15, "list.k": 16, "list.n": 17}
    assert key_lines(text) == expected


def test_every_broken_line_of_toml_gets_a_hint() -> None:
    """Each prefix of a full recipe is either whole or refused by a message with a line in the file."""
    for end in range(len(FULL)):
        try:
            tomllib.loads(FULL[:end])
        except tomllib.TOMLDecodeError as failure:
            assert syntax_fix(str(failure), FULL[:end].split("\n")[-1])


def test_missing_file_names_those_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"linzhi\.toml: there is no such file") as caught:
        read_toml(Path("linzhi.toml"))
    assert caught.value.findings[0].fix == "write one for your data, for example `fasttune init mine --data mine.jsonl`"
    (tmp_path / "recipes").mkdir()
    for name in ("linzhi", "linzhi_retune", "quickstart"):
        (tmp_path / "recipes" / f"{name}.toml").write_text(MINIMAL, encoding="utf-8")
    fixes = {}
    for path in ("linzhi.toml", "recipes/quikstart.toml", "linzhi", "recipes", "nowhere/quickstart.toml/x"):
        with pytest.raises(UsageError) as caught:
            read_toml(Path(path))
        fixes[path] = caught.value.findings[0].fix
    assert fixes["linzhi.toml"].startswith("did you mean recipes/linzhi.toml")
    assert fixes["recipes/quikstart.toml"] == "did you mean recipes/quickstart.toml?"
    assert fixes["linzhi"].startswith("did you mean recipes/linzhi.toml")
    assert fixes["recipes"] == "did you mean recipes/linzhi.toml, recipes/linzhi_retune.toml, recipes/quickstart.toml?"


def test_a_file_that_is_missing_a_folder_or_unreadable(tmp_path: Path) -> None:
    found = {}
    locked = tmp_path / "loop.toml"
    locked.symlink_to(locked)
    for path in (tmp_path / "none.toml", tmp_path, locked):
        with pytest.raises(UsageError) as caught:
            read_toml(path)
        (finding,) = caught.value.findings
        found[path] = (finding.code, finding.where)
    codes = ("recipe-not-found", "recipe-not-found", "recipe-unreadable")
    assert list(found.values()) == [(code, str(path)) for code, path in zip(codes, found, strict=True)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("true", True),
        ('"a"', "a"),
        ('["f16", "q8_0"]', ["f16", "q8_0"]),
        ("{loss = 0.3}", {"loss": 0.3}),
        ("", REFUSED),
        ("auto", REFUSED),
        ("1\nother = 2", REFUSED),
    ],
)
def test_one_value_of_toml(text: str, value: object) -> None:
    assert toml_value(text) == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = " + "[" * 100_000 + "]" * 100_000, "lists or tables are nested too deeply"),
        ("x = " + "{a = " * 5000 + "1" + "}" * 5000, "lists or tables are nested too deeply"),
        ("[lora]\nr = " + "9" * 6000, "a number has too many digits"),
        ("a." * 100_000 + "b = 1", "a key has more than 50 parts"),
        ("[" + "a." * 60 + "b]", "a key has more than 50 parts"),
        ('"a" . ' * 60 + "b = 1", "a key has more than 50 parts"),
    ],
    ids=["lists", "tables", "digits", "dotted", "header", "quoted"],
)
def test_toml_beyond_what_a_recipe_is_has_one_message(text: str, what: str, tmp_path: Path) -> None:
    """tomllib ends with a RecursionError or a ValueError of its own, or takes quadratic time."""
    path = tmp_path / "a.toml"
    path.write_text(f"{MINIMAL}{text}\n", encoding="utf-8")
    with cpu_limit(30), pytest.raises(UsageError) as caught:
        read_toml(path)
    (finding,) = caught.value.findings
    assert (finding.code, finding.where, finding.what) == ("recipe-beyond-limits", str(path), what)
    assert toml_value(text.partition("=")[2].strip()) in (REFUSED, 1)


def test_prose_with_many_points_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'{MINIMAL}data.system = """{"One. " * 200}"""  # {"a.b." * 200}\n', encoding="utf-8")
    assert read_toml(path)[0]["data"]["system"] == "One. " * 200


def test_a_file_of_megabytes_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before it is parsed, which takes seconds a megabyte."""
    path = tmp_path / "a.toml"
    path.write_text(f'{MINIMAL}data.system = "{"a" * 1_000_000}"\n', encoding="utf-8")
    monkeypatch.setattr(tomllib, "loads", pytest.fail)
    with pytest.raises(UsageError) as caught:
        read_toml(path)
    (finding,) = caught.value.findings
    assert finding.code == "recipe-too-large" and finding.what.startswith("1,000,0")
