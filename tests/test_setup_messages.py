"""The set-up speaks Chinese under a Chinese locale: every message has its translation, and none is said without one."""

from __future__ import annotations

import ast
import importlib
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

SETUP = REPOSITORY / ".setup"
sys.path.insert(0, str(SETUP))
messages = importlib.import_module("setup_messages")
# Whatever a person sees goes through one of these; the names of packages and commands are the same in both languages.
SHOWN = {"say", "print", "SetupError", "StepError", "pip", "run"}
NAMES = re.compile(r"((torch|pip|llama-cpp-python|fasttune|git checkout \S+)[\s\d.]*|\[ s\] |\s*)")


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """(file, call, name) of each call in the set-up's files of a function by its plain name."""
    for path in sorted(SETUP.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield path, node, node.func.id


def said() -> dict[str, set[str]]:
    """{message: names of its values} of every `_()`."""
    found = {}
    for path, node, name in calls():
        if name == "_":
            assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}: a literal text"
            found[str(node.args[0].value)] = {str(keyword.arg) for keyword in node.keywords}
    return found


def placeholders(text: str) -> list[tuple[str, str, str]]:
    parts = string.Formatter().parse(text)
    return sorted((name, spec or "", conversion or "") for _text, name, spec, conversion in parts if name is not None)


def test_every_message_has_its_chinese_and_its_placeholders() -> None:
    assert set(messages.CHINESE) == set(said())
    for english, chinese in messages.CHINESE.items():
        assert placeholders(english) == placeholders(chinese), english
        assert {name for name, _spec, _conversion in placeholders(english)} == said()[english], english
        assert re.search(r"[\u4e00-\u9fff]", chinese), english


def test_nothing_is_said_that_is_not_translated() -> None:
    for path, node, name in calls():
        for argument in node.args if name in SHOWN else ():
            if isinstance(argument, (ast.Constant, ast.JoinedStr)):
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                text = "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
                is_argument_of_pip = name == "pip" and re.match(r"-|install$|torch==", text)
                assert is_argument_of_pip or NAMES.fullmatch(text), f"{path.name}:{node.lineno}: {text!r}"


def refused(**environ: str) -> str:
    """What the set-up says of a FASTTUNE_DEVICE that is neither cpu nor cuda, before it does anything."""
    program = (
        "import setup_gpu, setup_steps\n"
        "try: setup_gpu.decide_device({'FASTTUNE_DEVICE': 'tpu'})\n"
        "except setup_steps.SetupError as error: print(error.what + '|' + error.fix)"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("FASTTUNE_LANG", "LC_ALL", "LANG")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SETUP, env={**kept, "PYTHONUTF8": "1", **environ}, capture_output=True,
        encoding="utf-8", check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "FASTTUNE_DEVICE 的值是 'tpu'|请设为 cpu 或 cuda，或者不设置"),
        ({"LANG": "C.UTF-8", "FASTTUNE_LANG": "zh"}, "FASTTUNE_DEVICE 的值是 'tpu'|请设为 cpu 或 cuda，或者不设置"),
        ({"LANG": "zh_CN.UTF-8", "FASTTUNE_LANG": "en"}, "FASTTUNE_DEVICE is 'tpu'|set it to cpu or cuda, or leave it out"),
    ],
)  # fmt: skip
def test_the_language_is_the_terminals_or_the_one_that_was_chosen(environ: dict[str, str], words: str) -> None:
    assert refused(**environ) == words
