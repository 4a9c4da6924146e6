"""Findings, errors, exit codes, prompts and languages."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from fasttune import cli, console
from fasttune.console import FasttuneError, Finding, UsageError

WARNING = Finding("slow-gpu", "warning", "machine", "the GPU is slow", fix="buy another")
ERROR = Finding("no-gpu", "error", "machine", "there is no [GPU]")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTTUNE_LANG": "zh"}, "zh"),
        ({"FASTTUNE_LANG": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_language(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("FASTTUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.language() == expected
    assert console._("error") == {"zh": "错误", "en": "error"}[expected]


def test_the_language_may_change_within_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for language in ("en", "zh", "en"):
        monkeypatch.setenv("FASTTUNE_LANG", language)
        shown.append(console._(" and {count} more", count=2))
    assert shown == [" and 2 more", " 以及另外 2 个", " and 2 more"]


def test_messages_without_a_translation_or_values_are_shown_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    for language in ("en", "zh"):
        monkeypatch.setenv("FASTTUNE_LANG", language)
        assert console._("in {no} catalog") == "in {no} catalog"
        assert console._("a set {{…}} of {size}", size=2) == "a set {…} of 2"


@pytest.mark.parametrize(
    ("language", "n", "expected"),
    [
        ("en", 0, "linzhi has 0 runs:"),
        ("en", 1, "linzhi has 1 run:"),
        ("en", 2, "linzhi has 2 runs:"),
        ("zh", 1, "linzhi 已有 1 次训练："),
        ("zh", 2, "linzhi 已有 2 次训练："),
    ],
)
def test_ngettext(monkeypatch: pytest.MonkeyPatch, language: str, n: int, expected: str) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", language)
    assert console.ngettext("{name} has {n} run:", "{name} has {n} runs:", n, name="linzhi") == expected


def test_worst_first_and_exit_code() -> None:
    assert console.worst_first([WARNING, ERROR]) == [ERROR, WARNING]
    assert console.exit_code([WARNING]) == 0
    assert console.exit_code([WARNING, ERROR]) == 1


def test_findings_go_to_stderr_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_findings([WARNING, ERROR])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: machine: there is no [GPU]",
        "warning: machine: the GPU is slow",
        "  hint: buy another",
    ]


def test_findings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_findings([WARNING], as_json=True)
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert set(finding) == {"code", "level", "where", "what", "why", "fix"}


HOSTILE = "\x1b]0;PWN\x07\x1b[2J\x9b31m\x7f\r\x08\ud800[bold]\tkept\nkept 你"
SHOWN = "\\x1b]0;PWN\\x07\\x1b[2J\\x9b31m\\x7f\\x0d\\x08\\ud800[bold]"


def test_no_text_of_a_stranger_steers_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is printed: a finding, a line, a line on stdout, the cell of a table, a label of a tree, a status."""
    monkeypatch.setenv("COLUMNS", "200")
    table, tree = Table(HOSTILE.replace("[", r"\[")), Tree("runs")
    table.add_row(HOSTILE.replace("[", r"\["))
    tree.add(Text(HOSTILE))
    console.show_findings([Finding("x", "error", HOSTILE, HOSTILE, HOSTILE, HOSTILE)])
    console.say(HOSTILE)
    for shown in (table, tree, Text(HOSTILE)):
        console.stdout_console.print(shown)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert captured.err.count(SHOWN) == 5 and captured.out.count("PWN") == 4
    assert "kept 你" in captured.out


def test_colours_of_our_own_are_kept() -> None:
    written = io.StringIO()
    coloured = console.SafeConsole(file=written, force_terminal=True, color_system="standard", highlight=False)
    coloured.print("[bold red]error:[/] \x1b[2J", end="")
    assert written.getvalue() == "\x1b[1;31merror:\x1b[0m \\x1b[2J"


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"text": HOSTILE})
    printed = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", printed) and "你" in printed
    assert json.loads(printed) == {"text": HOSTILE}


def test_nothing_is_printed_past_the_consoles() -> None:
    """`print`, and writing to stdout or stderr, elsewhere than where the text is made visible or is no stranger's."""
    known = {
        "console.py": 1,  # print_json
        "terminal/chat.py": 2,  # an answer, and its end
        "export/quantize.py": 1,  # a child's pipe, which its parent reads
        "recipe/reference.py": 1,  # the documentation
        "web/server.py": 1,  # the address of the board
    }
    package = Path(console.__file__).parent
    found = {
        path.relative_to(package).as_posix(): len(re.findall(r"\bsys\.std(?:out|err)\.write\(|(?<![.\w])print\(", text))
        for path in package.rglob("*.py")
        for text in [re.sub(r'"""(?s:.)*?"""', "", path.read_text(encoding="utf-8"))]
    }
    assert {name: count for name, count in found.items() if count} == known


def test_an_error_carries_its_findings_and_an_exit_code() -> None:
    failed = console.error("no-gpu", "there is none", where="machine", why="it is a CPU", fix="rent one")
    assert failed.findings == (Finding("no-gpu", "error", "machine", "there is none", "it is a CPU", "rent one"),)
    assert type(failed) is FasttuneError and (failed.exit_code, str(failed)) == (1, "machine: there is none")
    misused = console.usage_error("bad-flag", "no such flag")
    assert type(misused) is UsageError and (misused.exit_code, str(misused)) == (2, "no such flag")


def test_workers_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.silence():
        console.say("twice")
    console.say("once [not markup]")
    assert capsys.readouterr().err == "once [not markup]\n"


@pytest.mark.parametrize(
    ("variables", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"WORLD_SIZE": "1"}, True, True),
        ({"WORLD_SIZE": "2"}, True, False),
    ],
)
def test_who_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, expected: bool
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert console.can_ask() is expected


def test_json_never_holds_nan(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is no JSON; it is null, however deep it stands."""
    console.print_json({"loss": math.nan, "all": [1.5, -math.inf, {"x": (math.inf,)}], "text": "NaN", "n": 2})
    written = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert written == {"loss": None, "all": [1.5, None, {"x": [None]}], "text": "NaN", "n": 2}


@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_what_an_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """`show` marks supervised text with ⟦ and ⟧, which neither ASCII nor GBK has."""
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True))
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["fasttune", "show", "data/quickstart/train.jsonl:1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and b"Traceback" not in written["stderr"].getvalue()
    assert b"[[" in written["stdout"].getvalue() and b"]]" in written["stdout"].getvalue()


def test_json_is_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "gbk", "utf-8"):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        console.print_json({"a": "小灯 ⟦"})
        out.seek(0)
        assert json.loads(out.read()) == {"a": "小灯 ⟦"}


def test_a_closed_stdin_or_stdout_is_no_traceback() -> None:
    for closed, code in (("menu <&-", 2), ("runs <&- >&-", 0), ("plan recipes/quickstart.toml >&- 2>&-", 0)):
        command = f"{sys.executable} -m fasttune {closed}"
        done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == code and "Traceback" not in done.stderr


def test_a_flood_of_findings_is_cut_in_text_and_whole_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_findings([replace(ERROR, what=f"{ERROR.what} {number}") for number in range(5_000)])
    shown = capsys.readouterr().err
    assert shown.count("no [GPU]") == 20 and "and 4980 more findings, 4980 of them errors" in shown
    console.show_findings([ERROR] * 50, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 50


def test_findings_that_differ_in_their_place_alone_are_one_and_hide_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file whose every line has the same fault: one finding with its number, and the other faults stay in sight."""
    many = [
        Finding("missing-key", "error", f"t.jsonl:{line}", "no completion", fix="rename it") for line in range(5000)
    ]
    console.show_findings([*many[:4000], Finding("x", "error", "t.jsonl:4000", "another fault"), *many[4000:], WARNING])
    assert capsys.readouterr().err.splitlines() == [
        "error: t.jsonl:0: no completion",
        "  and 4999 more times, at t.jsonl:1, t.jsonl:2, t.jsonl:3, …",
        "  hint: rename it",
        "error: t.jsonl:4000: another fault",
        "warning: machine: the GPU is slow",
        "  hint: buy another",
    ]
    console.show_findings(many[:3])
    assert capsys.readouterr().err.count("no completion") == 3
    console.show_findings(many, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 5000


def test_a_long_document_is_written_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Python indents by itself, ten times as slowly as its C encoder writes: 200,000 wrong lines took half a minute."""
    console.show_findings([Finding("x", "error", "a.jsonl:1", "小" * 50 + HOSTILE)] * 20_000, as_json=True)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", printed)
    findings = json.loads(printed)["findings"]
    assert len(findings) == 20_000 and findings[0]["what"] == "小" * 50 + HOSTILE


def test_what_stdin_can_not_decode_is_kept_as_surrogates_and_a_closed_one_is_empty() -> None:
    code = (
        "import sys\nfrom fasttune import console\nconsole.prepare_streams()\nsys.stdout.write(ascii(sys.stdin.read()))"
    )
    words = [sys.executable, "-c", code]
    got = subprocess.run(words, input=b"hello \xff\xd6\xd0\n", capture_output=True, check=True)
    assert got.stdout.startswith(b"'hello \\udcff")
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, check=True)
    assert closed.stdout == b"''"


@pytest.mark.parametrize(
    "text",
    [
        "  001-fresh finished, 2 epochs, loss 0.900, held-out 1.000: not enough",
        "  提示：这么多样本通常适合四到六轮；轮数太少，人设不清晰",
    ],
)
def test_a_long_line_is_broken_at_words_on_a_terminal_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a script reads never is."""
    for is_terminal in (True, False):
        shown = io.StringIO()
        monkeypatch.setattr(
            console, "stderr_console", console.SafeConsole(file=shown, width=30, force_terminal=is_terminal)
        )
        console.say(text)
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.getvalue().splitlines()]
        assert "".join("".join(lines).split()) == text.replace(" ", "")
        if is_terminal:
            assert len(lines) > 1 and all(line.startswith("  ") and cell_len(line) <= 30 for line in lines)
            assert all(line[2] not in "，；。" for line in lines)
        else:
            assert lines == [text]


@pytest.mark.parametrize(
    ("before", "after"), [("train it with (", "), as the page says"), ("原因见", "，再试一次就好了")]
)
def test_a_command_is_never_broken_but_the_words_around_it_are(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied. One that is wider than the terminal begins a line of its own."""
    shown = io.StringIO()
    monkeypatch.setattr(console, "stderr_console", console.SafeConsole(file=shown, width=30, force_terminal=True))
    command = "`fasttune run recipes/a.toml --continue incremental`"
    console.say(f"{before}{command}{after}")
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3 and command in lines[1] and cell_len(lines[0]) <= 30 and cell_len(lines[2]) <= 30
    assert "".join("".join(lines).split()) == "".join(f"{before}{command}{after}".split())


def test_lines_of_stdout_are_broken_at_words_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stdout_console", console.SafeConsole(file=shown, width=20, force_terminal=True))
    console.put("verdict: cannot tell; too few\nsecond [line]", "red")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.getvalue().splitlines()]
    assert lines == ["verdict: cannot", "tell; too few", "second [line]"]


def test_a_text_between_colons_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    """`root:x:0` is what stands in the file, and rich's markup would make a cross of it."""
    console.show_findings([replace(ERROR, where="a:x:b", what="begins root:x:0", fix="see :warning:")])
    assert capsys.readouterr().err == "error: a:x:b: begins root:x:0\n  hint: see :warning:\n"
