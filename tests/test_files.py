"""Atomic files and folders, locks, a full disk, and the one decoder of text."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_files

from fasttune import files
from fasttune.console import FasttuneError, UsageError
from fasttune.data.reader import read_records
from fasttune.files import UndecodableText, decode_text
from fasttune.recipe.toml_file import read_toml

# --- decoding --------------------------------------------------------------------------------------------------------

TRADITIONAL = "妳是林芝，說話溫柔體貼，請稱呼對方為閣下"
KOREAN = "안녕하세요. 저는 지수예요. 오늘은 비가 와서 집에서 책을 읽고 있어요."
JAPANESE = "こんにちは。私は林と申します。今日は天気がいいので、海辺まで散歩に行きましょう。"
CHINESE = [
    ("定影液显影", "utf-8"),
    ("定影液显影", "utf-8-sig"),
    ("定影液显影", "gb18030"),  # none of them frequent
    ("锅碗瓢盆勺筷刀叉盘碟杯壶瓶罐缸桶篮筐箱柜", "gb18030"),
    ("你好", "gb18030"),
    ("是", "gb18030"),
    ("你是林芝，说话温柔。", "gbk"),
    ("你是林芝，说话温柔。", "gb2312"),
    (TRADITIONAL, "utf-8"),
    (TRADITIONAL, "gb18030"),
    ("你好，我喜歡在下雨的時候看書，也喜歡和朋友們去海邊🐼。", "gb18030"),
    (KOREAN, "utf-8"),
    ("Café naïve größe", "utf-8"),
]
REFUSED = [
    (TRADITIONAL, "big5"),
    ("你好", "big5"),
    ("定影液", "big5"),
    ("Café naïve größe", "latin-1"),
    ("Müller", "latin-1"),
    ("AÇÃO", "latin-1"),
    ("привет мир", "koi8-r"),
    (KOREAN, "euc-kr"),
    ("네", "euc-kr"),
    ("감사합니다", "euc-kr"),
    (JAPANESE, "euc-jp"),
    ("こんにちは", "euc-jp"),
    (JAPANESE, "shift-jis"),
    (TRADITIONAL, "utf-16"),
    ("Café", "utf-16-le"),  # without BOM
    ("Café", "utf-32"),
]


def recipe_text(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """The text that a recipe of these bytes holds, and the codes of the findings about it."""
    path.write_bytes(raw)
    try:
        return str(read_toml(path)[0]["system"]), []
    except UsageError as refusal:
        return "", [finding.code for finding in refusal.findings]


def data_text(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """The text that a data file of these bytes holds, and the codes of the findings about it."""
    path.write_bytes(raw)
    records, findings = read_records(str(path))
    return "".join(record.value["system"] for record in records), [finding.code for finding in findings]


@pytest.mark.parametrize(("text", "encoding"), CHINESE)
def test_text_is_read_alike_in_recipes_and_data(text: str, encoding: str, tmp_path: Path) -> None:
    is_utf8 = encoding.startswith("utf-8")
    assert decode_text(text.encode(encoding)) == (text, "utf-8" if is_utf8 else "gb18030")
    assert recipe_text(tmp_path / "a.toml", f'system = "{text}"\n'.encode(encoding)) == (text, [])
    notes = [] if is_utf8 else ["gb18030"]
    assert data_text(tmp_path / "a.jsonl", f'{{"system": "{text}"}}\n'.encode(encoding)) == (text, notes)


@pytest.mark.parametrize(("text", "encoding"), REFUSED)
def test_other_encodings_are_refused_alike_in_recipes_and_data(text: str, encoding: str, tmp_path: Path) -> None:
    with pytest.raises(UndecodableText) as caught:
        decode_text(text.encode(encoding))
    is_wide = encoding.startswith(("utf-16", "utf-32"))
    assert caught.value.is_wide is is_wide
    assert recipe_text(tmp_path / "a.toml", f'system = "{text}"\n'.encode(encoding)) == ("", ["recipe-encoding"])
    codes = ["utf-16" if is_wide else "unknown-encoding"]
    assert data_text(tmp_path / "a.jsonl", f'{{"system": "{text}"}}\n'.encode(encoding)) == ("", codes)


def test_the_first_byte_that_is_not_utf8_is_named() -> None:
    with pytest.raises(UndecodableText) as caught:
        decode_text("首行\n".encode("utf-8-sig") + b"second \xff\n")
    assert (caught.value.line, caught.value.byte) == (2, 0xFF)


def test_no_bytes_are_no_text() -> None:
    assert decode_text(b"") == decode_text(b"\xef\xbb\xbf") == ("", "utf-8")


# --- writing ---------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"name": "林栀"})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "林栀"\n}\n'
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        files.write_text(path, "x" * 5000)
    assert files.read_json(path) == {"name": "林栀"} and names(tmp_path) == ["a.json"]


def test_lines_are_appended_as_json(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for step in (1, 2):
        files.append_line(path, {"step": step, "text": "好"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"step": 1, "text": "好"}' and [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with pytest.raises(RuntimeError), files.whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    (tmp_path / "adapter.partial").mkdir()  # of a process that died
    (tmp_path / "adapter.partial" / "stale").touch()
    with files.whole_folder(target) as folder:
        assert not target.exists()
        (folder / "weights").write_text("all")
    assert names(tmp_path) == ["adapter"] and names(target) == ["weights"]
    with files.whole_folder(target) as folder:
        (folder / "other").touch()
    assert names(target) == ["other"]


def test_a_removed_folder_is_gone_and_partial_files_can_be_removed(tmp_path: Path) -> None:
    for name in ("run", "kept", "a.partial", ".b.deleted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "c.json.partial").touch()
    files.remove_folder(tmp_path / "run")
    assert "run" not in names(tmp_path)
    files.remove_partial(tmp_path, "a*")
    assert names(tmp_path) == [".b.deleted", "c.json.partial", "kept"]
    files.remove_partial(tmp_path)
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError("[enforce fail] unexpected pos 64"),
    ],
)
def test_a_full_disk_is_an_error_with_figures(failure: Exception, tmp_path: Path) -> None:
    full = files.disk_full_as_error(tmp_path / "not" / "there", 3_000_000)
    with pytest.raises(FasttuneError, match=r"a checkpoint needs 3\.0 MB") as caught, full:
        raise failure
    assert [finding.code for finding in caught.value.findings] == ["disk-full"]


def test_other_failures_pass_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.disk_full_as_error(tmp_path, 1):
        raise PermissionError(errno.EACCES, "denied")


def test_a_checksum_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert files.file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- locks -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from fasttune.files import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not files.is_locked(path)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert files.is_locked(path)
        with pytest.raises(FasttuneError, match="busy") as caught, files.locked(path, "busy", seconds=0.05):
            pass
        assert [finding.code for finding in caught.value.findings] == ["run-is-locked"]
        holder.kill()
    assert not files.is_locked(path)
    with files.locked(path, "busy"):
        assert files.is_locked(path)


def test_a_lock_file_that_is_deleted_lets_no_second_process_in(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        path.unlink()
        assert files.is_locked(path)
        with pytest.raises(FasttuneError, match="busy"), files.locked(path, "busy", seconds=0.05):
            pass
        holder.kill()
    with files.locked(path, "busy"):
        assert files.is_locked(path)


def test_a_lock_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    with pytest.raises(FasttuneError) as caught, files.locked(tmp_path / "gone" / ".lock", "busy"):
        pass
    assert [finding.code for finding in caught.value.findings] == ["run-removed"]


def test_a_file_system_without_locks_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the lock file alone decides."""
    flock = fcntl.flock

    def no_folders(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "no")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", no_folders)
    path = tmp_path / ".lock"
    with files.locked(path, "busy"):
        assert files.is_locked(path)
        with pytest.raises(FasttuneError, match="busy"), files.locked(path, "busy", seconds=0.05):
            pass
    assert not files.is_locked(path)


# --- a power cut ------------------------------------------------------------------------------------------------------


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed to the disk and what is renamed, in order, by name."""
    found: list[tuple[str, str]] = []

    def fsync(descriptor: int) -> None:
        found.append(("flushed", Path(f"/proc/self/fd/{descriptor}").readlink().name))

    def replace(old: Path, new: Path) -> None:
        found.append(("renamed", Path(new).name))
        own_replace(old, new)

    own_replace = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return found


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, done: list[tuple[str, str]]) -> None:
    files.write_text(tmp_path / "plan.json", "{}")
    partial = "plan.json" + files.PARTIAL
    assert done == [("flushed", partial), ("renamed", "plan.json"), ("flushed", tmp_path.name)]


def test_a_folder_is_on_the_disk_with_its_files_before_it_has_its_name(
    tmp_path: Path, done: list[tuple[str, str]]
) -> None:
    with files.whole_folder(tmp_path / "checkpoint-3") as partial:
        (partial / "a").write_bytes(b"weights")
        (partial / "b").mkdir()
        (partial / "b" / "c").write_bytes(b"more")
    flushed = [("flushed", name) for name in ("a", "c", "checkpoint-3" + files.PARTIAL)]
    assert done == [*flushed, ("renamed", "checkpoint-3"), ("flushed", tmp_path.name)]
