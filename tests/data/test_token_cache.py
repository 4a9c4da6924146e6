"""The token cache: nothing is rendered twice, and no damage, disk error, neighbour or change ever shows in a token."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Cli, small_files
from test_tokenize import CHATML, DROPS_SYSTEM, NO_DEFAULT, TRIMS, chat, sample, small_tokenizer

from fasttune.console import FasttuneError
from fasttune.data import token_cache
from fasttune.data.chat_template import ChatTemplate
from fasttune.data.dataset import Sample
from fasttune.data.tokenize import Learn, TokenizedSamples, tokenize_samples
from fasttune.recipe.schema import DataRecipe

SAMPLES = [chat(f"q{n} 你好", f"\nanswer {n}", "and?", "世界", system="Be brief.", id=f"t.jsonl:{n}") for n in range(9)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache's files, which is not there yet."""
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
    assert found == tokenize_samples(samples, tokenizer, recipe, 9999)  # the cache never shows in the result
    return found, encode.rendered


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
    monkeypatch.setattr(token_cache.metadata, "version", lambda name: "another")
    assert through(samples, tokenizer)[1] == 10


def test_the_role_of_a_text_counts(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the template writes two roles alike and only changes the contents of one."""
    nameless = NO_DEFAULT.replace("m.role +", "('x' if m.role != 'assistant' else m.role) +")
    trims_system = nameless.replace("m.content", "(m.content | trim if m.role == 'system' else m.content)")
    monkeypatch.setattr(tokenizer, "chat_template", trims_system)
    assert through([sample(("user", " a"), ("assistant", "b"))], tokenizer)[1] == 1
    with pytest.raises(FasttuneError, match="the chat template changes this sample's text"):
        through([sample(("system", " a"), ("assistant", "b"))], tokenizer)


@pytest.mark.parametrize("place", ["{{- today }}", "{%- if messages[0].role == 'system' %}{{- today }}{% endif %}"])
def test_a_template_that_writes_the_date(place: str, tokenizer: Any) -> None:
    """The date may stand in some conversations only; samples of another day are rendered anew."""
    monday, tuesday = ({"today": day} for day in ("Monday", "Tuesday"))

    class Dated:
        chat_template, backend_tokenizer = place + CHATML, tokenizer.backend_tokenizer

        def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
            return tokenizer.apply_chat_template(conversation, chat_template=self.chat_template, **options, **self.day)

    made = Dated()
    for day, expected in ((monday, 9), (tuesday, 9), (monday, 0), (tuesday, 0)):
        made.day = day  # type: ignore[attr-defined]
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


def test_a_damaged_file_is_rendered_anew(tokenizer: Any, cache: Path) -> None:
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    whole, chance = path.read_bytes(), random.Random(5)
    cuts = [whole[:length] for length in (0, 1, 31, 32, 40, 71, 75, len(whole) // 2, len(whole) - 4, len(whole) - 1)]
    flips = []
    for at in [0, 33, 64, 68, *(chance.randrange(len(whole)) for _time in range(20))]:
        flips.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    for damaged in [*cuts, *flips, whole + b"\0", b"\0" * len(whole), whole * 2]:
        path.write_bytes(damaged)
        assert through(SAMPLES, tokenizer)[1] == 9
        assert path.read_bytes() == whole
    assert through(SAMPLES, tokenizer)[1] == 0
    path.unlink()
    path.mkdir()
    assert through(SAMPLES, tokenizer)[1] == 9  # nothing can be read or written there


@pytest.mark.parametrize("blocked", ["fasttune", "fasttune/tokens"])
def test_a_folder_that_cannot_be_made(tokenizer: Any, cache: Path, blocked: str) -> None:
    file = cache.parent.parent / blocked
    file.parent.mkdir(parents=True)
    file.write_text("in the way")
    for _time in range(2):
        assert through(SAMPLES, tokenizer)[1] == 9
    assert file.read_text() == "in the way"


def test_a_full_disk_leaves_no_half_file(tokenizer: Any, cache: Path) -> None:
    assert through(SAMPLES[:1], tokenizer)[1] == 1
    (path,) = cache.iterdir()
    before = path.read_bytes()
    with small_files(1000):
        assert through(SAMPLES, tokenizer)[1] == 8
    assert [one.read_bytes() for one in cache.iterdir()] == [before]
    with small_files(1000):
        assert through(SAMPLES, tokenizer)[1] == 8


def test_little_room_is_left_to_others(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    size = path.stat().st_size
    path.unlink()
    free = os.statvfs(cache)
    monkeypatch.setattr(token_cache, "SHARE", free.f_bavail * free.f_frsize // (size // 2))
    assert through(SAMPLES, tokenizer)[1] == 9
    assert 0 < path.stat().st_size <= size * 0.6
    assert 0 < through(SAMPLES, tokenizer)[1] < 9


def test_a_file_is_bounded_and_keeps_what_was_used_last(
    tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(SAMPLES[:3], tokenizer)
    (path,) = cache.iterdir()
    monkeypatch.setattr(token_cache, "LIMIT", path.stat().st_size)
    through(SAMPLES[1:4], tokenizer)
    assert path.stat().st_size <= token_cache.LIMIT
    assert through(SAMPLES[1:4], tokenizer)[1] == 0
    assert through(SAMPLES[:1], tokenizer)[1] == 1


def test_the_folder_is_bounded(tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that nobody used for long go first, whole or half."""
    cache.mkdir(parents=True)
    for age, name in enumerate(["a.tokens", "killed.partial", "b.tokens", "c.tokens"]):
        (cache / name).write_bytes(bytes(4000))
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    through(SAMPLES, tokenizer)
    mine = next(path for path in cache.iterdir() if path.stat().st_size != 4000)
    assert len(list(cache.iterdir())) == 5 and mine.stat().st_size < 3000
    monkeypatch.setattr(token_cache, "LIMIT", 4000)
    through([chat("one", "more")], tokenizer)
    assert {path.name for path in cache.iterdir()} == {mine.name, "a.tokens"}


def test_a_file_that_was_read_is_in_use(tokenizer: Any, cache: Path) -> None:
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    os.utime(path, (1e9, 1e9))
    through(SAMPLES, tokenizer)
    assert path.stat().st_mtime > 1.1e9


def test_runs_side_by_side_see_whole_files(tokenizer: Any, cache: Path) -> None:
    """Writers of one file in one process, so that nothing but the file's name can keep them apart."""
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    known = token_cache.read(path)
    records = [bytes(record) for record in known.values()] * 300
    seen: list[int] = []

    def write(count: int) -> None:
        for _time in range(25):
            token_cache.write(path, records[: 9 * count])
            seen.append(len(token_cache.read(path)))

    threads = [threading.Thread(target=write, args=(count,)) for count in (1, 100, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {9}
    assert [one.name for one in cache.iterdir()] == [path.name]


def test_a_kill_while_writing_is_survived(tokenizer: Any, cache: Path) -> None:
    """kill -9 in the middle of many writes: the file is a whole one, and what is left over is no obstacle."""
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    code = (
        "import sys; from pathlib import Path; from fasttune import tokens; path = Path(sys.argv[1]);"
        "records = [bytes(one) for one in tokens.read(path).values()];"
        "print('ready', flush=True)\nwhile True: tokens.write(path, records * 20000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    while not any(one.suffix == ".partial" and one.stat().st_size for one in present(cache)):
        assert writer.poll() is None
    writer.kill()
    writer.wait()
    assert through(SAMPLES, tokenizer)[1] == 0


def present(folder: Path) -> list[Path]:
    """The files that are still there after they were listed."""
    return [path for path in folder.iterdir() if path.exists()]


def test_users_of_the_machine_cannot_read_the_samples(tokenizer: Any, cache: Path) -> None:
    through(SAMPLES, tokenizer)
    (path,) = cache.iterdir()
    assert path.stat().st_mode & 0o077 == 0


def test_the_command_line_renders_one_edited_line(fasttune: Cli, tmp_path: Path) -> None:
    """And says how long each start-up phase took, on the screen and in provenance.json."""
    lines = (REPOSITORY / "data" / "quickstart" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    file, runs = tmp_path / "train.jsonl", tmp_path / "runs" / "quickstart"
    given = ["run", "recipes/quickstart.toml", "--on-existing", "new", "--set", f"data.train={file}"]
    given += ["--set", "data.val=", "--set", "train.max_steps=1", "--set", "export.gguf=[]"]
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
    changed = tmp_path / "render.py"
    changed.write_bytes(Path(token_cache.tokenize.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(token_cache.tokenize, "__file__", str(changed))
    assert token_cache.key(ChatTemplate(tokenizer), "assistant") != before
