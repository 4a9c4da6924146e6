"""The token cache: nothing is rendered twice; no damage, disk error, other process or change ever shows in a token."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY, Cli, small_files
from test_tokenize import CHATML, DROPS_SYSTEM, NO_DEFAULT, TRIMS, chat, sample, small_tokenizer

from fasttune.console import FasttuneError
from fasttune.data import token_cache, tokenize
from fasttune.data.chat_template import ChatTemplate
from fasttune.data.dataset import Sample
from fasttune.data.tokenize import Learn, TokenizedSamples, tokenize_samples
from fasttune.recipe.schema import DataRecipe

SAMPLES = [chat(f"q{n} 你好", f"\nanswer {n}", "and?", "世界", system="Be brief.", id=f"t.jsonl:{n}") for n in range(9)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the database, which is not there yet."""
    monkeypatch.setenv("FASTTUNE_LANG", "en")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fasttune" / "tokens"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def through(samples: list[Sample], tokenizer: Any, learn: Learn = "assistant") -> tuple[TokenizedSamples, int]:
    """What comes through the cache, and how many samples were rendered for it."""
    encode = token_cache.Cache()
    recipe = DataRecipe(train=("t.jsonl",), learn=learn)
    found = tokenize_samples(samples, tokenizer, recipe, 9999, encode)
    day = str(getattr(tokenizer, "day", ""))
    assert found == without_cache(tuple(samples), tokenizer, tokenizer.chat_template, learn, day)
    return found, encode.rendered


@functools.cache
def without_cache(
    samples: tuple[Sample, ...], tokenizer: Any, _template: str, learn: Learn, _day: str
) -> TokenizedSamples:
    """What comes without a cache, which never shows in the result; computed once for the same samples and template."""
    return tokenize_samples(samples, tokenizer, DataRecipe(train=("t.jsonl",), learn=learn), 9999)


def database(cache: Path) -> Path:
    return cache / "examples.sqlite3"


def contents(cache: Path) -> dict[int, bytes]:
    """The rows of a database whose structure is whole, by the samples' names."""
    with contextlib.closing(sqlite3.connect(database(cache))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = dict(connection.execute("SELECT name, content FROM samples JOIN examples ON id = example").fetchall())
        assert connection.execute("SELECT count(*) FROM examples").fetchone() == (len(found),)
    return found


def long_samples(numbers: range) -> list[Sample]:
    """Samples of some 500 tokens, which take half a page each."""
    return [chat(f"q{n} " + "quick fox 你好 " * 40, f"answer {n}" * 10, id=f"t.jsonl:{n}") for n in numbers]


def test_a_sample_is_rendered_once(tokenizer: Any) -> None:
    assert through(SAMPLES, tokenizer)[1] == 9
    assert through(SAMPLES, tokenizer)[1] == 0
    edited = [*SAMPLES[:4], chat("q", "another", id="t.jsonl:4"), *SAMPLES[5:]]
    assert through(edited, tokenizer)[1] == 1
    assert through(SAMPLES, tokenizer)[1] == 0  # what was there before the edit is kept
    elsewhere = [Sample(f"other.jsonl:{n}", sample.messages) for n, sample in enumerate(reversed(edited))]
    found, rendered = through(elsewhere, tokenizer)
    assert rendered == 0
    assert [example.sample_id for example in found.examples] == [sample.id for sample in elsewhere]
    assert through([], tokenizer)[1] == 0


def test_whatever_changes_tokens_is_rendered_anew(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others = small_tokenizer()
    others.add_tokens(["brief"])
    ways: list[tuple[Any, str, Learn]] = [
        (tokenizer, CHATML, "assistant"), (tokenizer, CHATML, "all"), (others, CHATML, "assistant"),
        (tokenizer, NO_DEFAULT, "assistant"), (tokenizer, CHATML.replace("Be kind", "Be true"), "assistant"),
    ]  # fmt: skip
    samples = [*SAMPLES, chat("no system prompt", "yes", id="t.jsonl:9")]
    for expected in (10, 0):
        for made, template, learn in ways:
            monkeypatch.setattr(made, "chat_template", template)
            assert through(samples, made, learn)[1] == expected
    monkeypatch.setattr(token_cache, "installed_version", lambda name: "another")
    assert through(samples, tokenizer)[1] == 10


def test_the_role_of_a_text_counts(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the template writes two roles alike and only changes the contents of one."""
    nameless = NO_DEFAULT.replace("m.role +", "('x' if m.role != 'assistant' else m.role) +")
    trims_system = nameless.replace("m.content", "(m.content | trim if m.role == 'system' else m.content)")
    monkeypatch.setattr(tokenizer, "chat_template", trims_system)
    assert through([sample(("user", " a"), ("assistant", "b"))], tokenizer)[1] == 1
    with pytest.raises(FasttuneError, match="the chat template changes this sample's text"):
        through([sample(("system", " a"), ("assistant", "b"))], tokenizer)


def test_what_is_excluded_from_training_counts(tokenizer: Any) -> None:
    plain = chat("q", "a", "q", "b")
    question, answer, *rest = plain.messages
    masked = Sample(plain.id, (question, replace(answer, learn=False), *rest))
    whole, less = (through([given], tokenizer)[0].examples[0] for given in (plain, masked))
    assert less.supervised == whole.supervised[1:]
    again, rendered = through([masked], tokenizer)
    assert again.examples == (less,) and rendered == 0


@pytest.mark.parametrize("place", ["{{- today }}", "{%- if messages[0].role == 'system' %}{{- today }}{% endif %}"])
def test_a_template_that_writes_the_date(place: str, tokenizer: Any) -> None:
    """The date may stand in some conversations only; samples of another day are rendered anew."""
    monday, tuesday = ({"today": day} for day in ("Monday", "Tuesday"))

    class Dated:
        chat_template, backend_tokenizer = place + CHATML, tokenizer.backend_tokenizer
        day: dict[str, str]

        def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
            return tokenizer.apply_chat_template(conversation, chat_template=self.chat_template, **options, **self.day)

    made = Dated()
    for day, expected in ((monday, 9), (tuesday, 9), (monday, 0), (tuesday, 0)):
        made.day = day
        assert through(SAMPLES, made)[1] == expected


def test_what_cannot_be_rendered_is_said_every_time(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [chat("q", "a"), chat("q", "b"), chat("q", " spaces ", id="t.jsonl:7")]
    monkeypatch.setattr(tokenizer, "chat_template", TRIMS)
    for rendered in (3, 1):
        encode = token_cache.Cache()
        with pytest.raises(FasttuneError, match=r"t\.jsonl:7: the chat template changes this sample's text"):
            tokenize_samples(bad, tokenizer, DataRecipe(train=("t",)), 9999, encode)
        assert encode.rendered == rendered
    monkeypatch.setattr(tokenizer, "chat_template", DROPS_SYSTEM)
    for _time in range(2):
        with pytest.raises(FasttuneError, match="leaves out or moves messages"):
            tokenize_samples(SAMPLES, tokenizer, DataRecipe(train=("t",)), 9999, token_cache.Cache())


def test_an_edited_line_writes_one_row(tokenizer: Any, cache: Path) -> None:
    many = long_samples(range(300))
    through(many, tokenizer)
    rows, before = contents(cache), database(cache).read_bytes()
    assert through([*many[:70], chat("edited", "line"), *many[71:]], tokenizer)[1] == 1
    after = database(cache).read_bytes()
    assert len(contents(cache)) == 301 and contents(cache).items() > rows.items()
    pages = [before[at : at + 4096] != after[at : at + 4096] for at in range(0, len(after), 4096)]
    assert len(pages) > 100 and sum(pages) <= 5
    through(many, tokenizer)
    assert database(cache).read_bytes() == after  # nothing new, nothing written


def test_a_damaged_database_is_rendered_anew(tokenizer: Any, cache: Path) -> None:
    """Whatever byte is damaged, no token is; at the latest the third run finds everything again."""
    through(SAMPLES, tokenizer)
    path, chance = database(cache), random.Random(5)
    whole = path.read_bytes()
    cuts = [whole[:length] for length in (0, 1, 50, 99, 100, 4095, 4096, 5000, len(whole) - 4096)]
    flips = []
    for at in [*range(16, 24), 31, 47, 59, 100, *(chance.randrange(len(whole)) for _time in range(20))]:
        flips.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    for damaged in [*cuts, *flips, b"\0" * len(whole), b"not a database", chance.randbytes(len(whole))]:
        path.write_bytes(damaged)
        through(SAMPLES, tokenizer)
        through(SAMPLES, tokenizer)
        assert through(SAMPLES, tokenizer)[1] == 0
    for name in ("examples.sqlite3", "examples.sqlite3-journal"):
        path.unlink(missing_ok=True)
        (cache / name).mkdir()
        assert through(SAMPLES, tokenizer)[1] == 9  # nothing can be read or written there
        (cache / name).rmdir()
    assert [through(SAMPLES, tokenizer)[1] for _time in range(2)] == [9, 0]


def test_a_flipped_bit_in_a_row_is_found(tokenizer: Any, cache: Path) -> None:
    """Damage that SQLite does not see, each time in one row; also the whole content of another sample."""
    through(SAMPLES, tokenizer)
    rows = contents(cache)
    name, content = next(iter(rows.items()))
    chance = random.Random(5)
    flips = [content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :] for at in
             [0, 31, 32, 33, 36, 40, len(content) - 1, *(chance.randrange(len(content)) for _time in range(20))]]  # fmt: skip
    for damaged in [
        *flips,
        b"",
        content[:31],
        content[:-4],
        content + bytes(4),
        list(rows.values())[1],
        None,
        7,
        "text",
    ]:
        with contextlib.closing(sqlite3.connect(database(cache))) as connection, connection:
            query = "UPDATE examples SET content = ? WHERE id = (SELECT example FROM samples WHERE name = ?)"
            assert connection.execute(query, (damaged, name)).rowcount == 1
        assert [through(SAMPLES, tokenizer)[1] for _time in range(2)] == [1, 0]
        assert contents(cache) == rows


@pytest.mark.parametrize("statement", ["CREATE TABLE samples (name TEXT)", "CREATE TABLE mine (a, b)"])
def test_a_foreign_database_is_replaced(tokenizer: Any, cache: Path, statement: str) -> None:
    cache.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(database(cache))) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(statement)
    assert [through(SAMPLES, tokenizer)[1] for _time in range(2)] == [9, 0]


@pytest.mark.parametrize("blocked", ["fasttune", "fasttune/tokens"])
def test_a_folder_that_cannot_be_made(tokenizer: Any, cache: Path, blocked: str) -> None:
    file = cache.parent.parent / blocked
    file.parent.mkdir(parents=True)
    file.write_text("in the way")
    for _time in range(2):
        assert through(SAMPLES, tokenizer)[1] == 9
    assert file.read_text() == "in the way"


def test_a_user_without_a_home(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert through(SAMPLES, tokenizer)[1] == 9


def test_a_read_only_folder_is_read(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a user whom permissions hold: root writes everywhere, so that it is another one here."""
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        through(SAMPLES, tokenizer)
        cache = Path(home, "fasttune", "tokens")
        before = database(cache).read_bytes()
        Path(home).chmod(0o755)
        database(cache).chmod(0o444)
        cache.chmod(0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            if not os.access(token_cache.__file__, os.R_OK, effective_ids=True):
                pytest.skip("the repository is root's alone")
            assert through(SAMPLES, tokenizer)[1] == 0
            for _time in range(2):
                assert through([*SAMPLES, chat("one", "more")], tokenizer)[1] == 1
            monkeypatch.setattr(token_cache, "time", SimpleNamespace(time=lambda: 1e10))
            assert through(SAMPLES, tokenizer)[1] == 0
        finally:
            os.seteuid(user)
            cache.chmod(0o755)
        assert [path.read_bytes() for path in cache.iterdir()] == [before]


def test_a_locked_database_is_done_without(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through(SAMPLES, tokenizer)
    monkeypatch.setattr(token_cache, "BUSY", 0.01)
    more = [*SAMPLES, chat("one", "more")]
    with contextlib.closing(sqlite3.connect(database(cache), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert [through(more, tokenizer)[1] for _time in range(2)] == [1, 1]  # can be read, but not written
        connection.execute("ROLLBACK")
        connection.execute("BEGIN EXCLUSIVE")
        assert [through(more, tokenizer)[1] for _time in range(2)] == [10, 10]
    assert [through(more, tokenizer)[1] for _time in range(2)] == [1, 0]


@pytest.mark.parametrize("limit", [1000, 20_000, 40_000, 100_000])
def test_a_full_disk_leaves_the_database_whole(tokenizer: Any, cache: Path, limit: int) -> None:
    through(SAMPLES, tokenizer)
    many = [*SAMPLES, *long_samples(range(200))]
    before = contents(cache)
    for _time in range(2):
        with small_files(limit):
            assert through(many, tokenizer)[1] == 200
        assert contents(cache) == before
    assert [through(many, tokenizer)[1] for _time in range(2)] == [200, 0]


def test_little_space_is_left_to_others(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is nearly full: the first samples are kept; where it becomes fuller, fewer of them."""
    many = long_samples(range(200))
    through(many, tokenizer)
    size = database(cache).stat().st_size
    database(cache).unlink()
    for part in (0.5, 0.25):
        free = SimpleNamespace(free=int(size * part * token_cache.SHARE))
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: free)
        through(many, tokenizer)
        taken = database(cache).stat().st_size
        assert size * part * 0.7 < taken <= size * part * 1.06  # a tenth of its own bytes counts as free
        assert 200 * (1 - part * 1.3) < through(many, tokenizer)[1] < 200
    assert through(many[:30], tokenizer)[1] < 30


def test_what_was_not_used_for_longest_is_removed(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, fourth = (long_samples(range(at, at + 50)) for at in (0, 50, 100, 150))
    days = iter(range(20_000, 20_100))

    def used(samples: list[Sample]) -> int:
        today = next(days)
        monkeypatch.setattr(token_cache, "time", SimpleNamespace(time=lambda: today * 86400 + 5))
        return through(samples, tokenizer)[1]

    assert [used(samples) for samples in (first, second, third)] == [50, 50, 50]
    monkeypatch.setattr(token_cache, "LIMIT", database(cache).stat().st_size + 5 * 4096)  # some pages are partly empty
    assert [used(samples) for samples in (first, fourth)] == [0, 50]  # the second has to go
    assert database(cache).stat().st_size <= token_cache.LIMIT
    assert [used(samples) for samples in (third, first, fourth)] == [0, 0, 0]
    assert used(second) > 35
    assert used([*second, *first, *fourth]) == 0  # the third had to go
    assert database(cache).stat().st_size <= token_cache.LIMIT
    monkeypatch.setattr(token_cache, "LIMIT", 4096)
    assert [used(first) for _time in range(3)] == [0, 50, 50]  # for lack of space nothing is kept
    assert database(cache).stat().st_size <= 5 * 4096


def test_files_of_the_old_format_are_removed(tokenizer: Any, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name in ("6f4d810454d3222d559aa1d1898fc845.tokens", "tmpabc.partial", "mine.txt"):
        (cache / name).write_bytes(bytes(4000))
    through(SAMPLES, tokenizer)
    assert {path.name for path in cache.iterdir()} == {"examples.sqlite3", "mine.txt"}


WRITER = """
import sys, time
from hashlib import sha256
from fasttune.data import token_cache, tokenize
from fasttune.data.tokenize import Example

def write(numbers):
    names = [sha256(b"%d" % number).digest() for number in numbers]
    token_cache.write({name: token_cache.packed(name, Example("", tuple(range(300)), ((1, 9),))) for name in names}, {})

token_cache.BUSY = 60
print("ready", flush=True)
"""


def writer(code: str) -> subprocess.Popen[bytes]:
    """Another process that uses the cache, and is ready."""
    options: Any = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stdin": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", WRITER + code], **options)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_two_processes_write_at_once(tokenizer: Any, cache: Path) -> None:
    """From an empty folder on, the samples of both partly the same; nothing is lost, nothing is damaged."""
    starts = (0, 300)
    code = "sys.stdin.read(1)\nfor at in range({start}, {start} + 600, 10): write(range(at, at + 10))"
    writers = [writer(code.format(start=start)) for start in starts]
    for process in writers:
        assert process.stdin is not None
        process.stdin.close()
    while any(process.poll() is None for process in writers):
        through(SAMPLES, tokenizer)
    assert [process.returncode for process in writers] == [0, 0]
    names = [hashlib.sha256(b"%d" % number).digest() for number in range(900)]
    assert set(token_cache.read(names)) == set(names)
    through(SAMPLES, tokenizer)
    assert len(contents(cache)) == 909


def test_a_kill_while_writing_is_survived(tokenizer: Any, cache: Path) -> None:
    """kill -9 when most of a transaction is in the file already: the next process takes it back."""
    through(SAMPLES, tokenizer)
    rows, size = contents(cache), database(cache).stat().st_size
    code = "token_cache.add = lambda *given, add=token_cache.add: [add(*given), print('ready', flush=True), time.sleep(600)]\n"
    process = writer(code + "write(range(20_000))")
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    assert database(cache).stat().st_size > size + 1e6
    process.kill()
    process.wait()
    assert (cache / "examples.sqlite3-journal").exists()
    assert through(SAMPLES, tokenizer)[1] == 0
    assert contents(cache) == rows and database(cache).stat().st_size == size


def test_users_of_the_machine_cannot_read_the_samples(tokenizer: Any, cache: Path) -> None:
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("one_layer_here")
def test_the_command_line_renders_one_edited_line(fasttune: Cli, tmp_path: Path) -> None:
    """And says how long each start-up phase took, on the screen and in provenance.json."""
    lines = (REPOSITORY / "data" / "quickstart" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    file, runs = tmp_path / "train.jsonl", tmp_path / "runs" / "quickstart"
    given = ["run", "recipes/quickstart.toml", "--on-existing", "new", "--set", f"data.train={file}"]
    given += ["--set", "data.val=", "--set", "train.max_steps=1", "--set", "export.gguf=[]"]
    given += ["--set", "probe.questions=[]"]
    for number, rendered in enumerate([12, 0, 1], start=1):
        if number == 3:
            lines[5] = lines[5].replace(json.loads(lines[5])["messages"][-1]["content"], "edited")
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        done = fasttune(*given)
        assert done.returncode == 0, done.stderr
        (start,) = json.loads((runs / f"00{number}-fresh" / "provenance.json").read_text())["starts"]
        assert (start["step"], start["samples"], start["rendered"]) == (1, 12, rendered)
        assert list(start["seconds"]) == ["import", "render", "load", "first_step"]
        assert all(seconds >= 0 for seconds in start["seconds"].values()) and start["seconds"]["first_step"] > 0
        shown = [line.split(":")[0] for line in done.stderr.splitlines() if line.endswith(" s")]
        assert shown[:4] == ["loading torch and Unsloth", "tokenizing", "loading the model", "first step"]


def test_the_key_knows_the_source(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = token_cache.key(ChatTemplate(tokenizer), "assistant")
    changed = tmp_path / "tokenize.py"
    changed.write_bytes(Path(str(tokenize.__file__)).read_bytes() + b"\n")
    monkeypatch.setattr(tokenize, "__file__", str(changed))
    assert token_cache.key(ChatTemplate(tokenizer), "assistant") != before
