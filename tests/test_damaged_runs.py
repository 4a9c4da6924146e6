"""A run whose files are damaged in any way: one message that names the file, never a traceback, and the rest is shown."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from conftest import REPOSITORY, Cli, Done, Shared, call_here

from fasttune.console import FasttuneError, Finding
from fasttune.export import llama
from fasttune.runs import store
from fasttune.runs.documents import PlanDocument, Provenance, TrainerStateFigures
from fasttune.runs.store import Run
from fasttune.terminal import command_line, entry_menu, questions

SHORT = ["--set", "train.max_steps=4", "--set", "train.save_steps=2", "--set", "probe.questions=['你是谁？']"]
CONTINUE = ["plan", "quickstart.toml", "--continue", "incremental", "--set", "continue.add_epochs=1"]
READ = ["plan.json", "provenance.json", "history.jsonl", "scores.json", "trainer_state.json"]
# The verbs that read a file of a finished run, beside `runs`, `plan` and `run`.
READERS = {
    "plan.json": "diagnose export chat",
    "provenance.json": "export chat",
    "history.jsonl": "diagnose",
    "scores.json": "diagnose",
    "trainer_state.json": "diagnose",
    "recipe.toml": "export",
    "exports/quickstart-Q8_0.json": "export chat",
}
DATA = ("train.jsonl", "val.jsonl")
Damage = Callable[[bytes], bytes | None]
pytestmark = pytest.mark.usefixtures("one_layer_base")


def flipped(raw: bytes) -> bytes:
    at = random.Random(len(raw)).randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :]


DAMAGES: dict[str, Damage] = {
    "missing": lambda raw: None,
    "empty": lambda raw: b"",
    "one byte": lambda raw: raw[:1],
    "cut": lambda raw: raw[: len(raw) // 2],
    "zeros": lambda raw: bytes(len(raw)),
    "flipped": flipped,
    "GBK": lambda raw: "坏掉的文件\n".encode("gbk") + raw,
    "null": lambda raw: b"null\n",
    "a list": lambda raw: b"[1, 2]\n",
    "nested": lambda raw: b"[" * 100_000 + b"\n",
    "other types": lambda raw: raw.replace(b": 1", b': "x').replace(b": 0", b": null"),
    "texts": lambda raw: raw.replace(b'"loss"', b'"lost"').replace(b'"step"', b'"stop"').replace(b"name", b"nome"),
    "no time": lambda raw: raw.replace(b'"created": "2', b'"created": "x').replace(b'epoch": ', b'epoch": -'),
    "no epochs": lambda raw: re.sub(rb'"steps_per_epoch": \d+', b'"steps_per_epoch": 0', raw),
    "huge": lambda raw: re.sub(rb'": \d+(\.\d+)?', b'": 1' + b"0" * 400, raw),
    "infinite": lambda raw: re.sub(rb'": \d+(\.\d+)?', b'": 1e999', raw),
    "digits": lambda raw: re.sub(rb'": \d+(\.\d+)?', b'": ' + b"1" * 5000, raw),
    "long": lambda raw: re.sub(rb'": "[^"]*"', b'": "' + b"a" * 5000 + b'"', raw),
    "NUL": lambda raw: re.sub(rb'": "[^"]*"', rb'": "\\u0000"', raw),
}
# Texts are texts still, and a digest that of something else: what they name is said not to be there, or not to fit.
UNTRUE = ("flipped", "long", "NUL")


@pytest.fixture(scope="module")
def trained(shared: Shared) -> Path:
    """A folder with the quick start's recipe, ten of its samples, and a short finished run below runs/; no test changes
    it."""

    def train(folder: Path) -> None:
        text = (REPOSITORY / "recipes" / "quickstart.toml").read_text(encoding="utf-8")
        (folder / "quickstart.toml").write_text(text.replace("data/quickstart/", ""), encoding="utf-8")
        for name in DATA:
            lines = (REPOSITORY / "data" / "quickstart" / name).read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / name).write_text("".join(lines[:10]), encoding="utf-8")
        done = call(folder / "runs", "run", "quickstart.toml", *SHORT)
        assert done.returncode == 0, done.stderr

    return shared("damaged-runs", train)


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, with a second series beside it that stays as it is."""
    for name in ("quickstart.toml", *DATA):
        shutil.copy(trained / name, tmp_path)
    for series in ("quickstart", "other"):
        shutil.copytree(trained / "runs" / "quickstart", tmp_path / "runs" / series)
    return tmp_path / "runs"


def call(runs: Path, *arguments: str, stdin: str | None = None) -> Done:
    """`fasttune ARGS…` in the folder that the runs folder lies in."""
    return call_here(runs, *arguments, cwd=runs.parent, stdin=stdin)


def damaged(file: Path) -> Iterator[str]:
    """Damages a file in each way, one after the other, and puts it back."""
    raw = file.read_bytes()
    for name, damage in DAMAGES.items():
        if (content := damage(raw)) == raw:
            continue  # a damage of something that this file has not in it
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        yield name
        file.write_bytes(raw)


def told(runs: Path, *arguments: str, stdin: str | None = None) -> str:
    """What a command says; where it fails, that it does so in words and in one message."""
    done = call(runs, *arguments, stdin=stdin)
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.count("error: ") == 1, done.stderr
    return done.stderr if done.returncode else ""


def other_fields(raw: bytes, read: Set[str]) -> Iterator[bytes]:
    """A document without each of the fields that are read, in turn, and with other values in it."""
    document = json.loads(raw)
    for key in document.keys() & read:
        yield json.dumps({name: value for name, value in document.items() if name != key}).encode()
        for value in (None, list[int](), 10**400):
            yield json.dumps(document | {key: value}).encode()


@pytest.mark.parametrize("name", READ)
def test_a_damaged_document_is_one_finding_and_hides_nothing_else(
    runs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    file = runs / "quickstart" / "001-fresh" / name
    for damage in damaged(file):
        done = call(runs, "runs", "--json")
        assert done.returncode in (0, 1), (damage, done.stderr)
        document = json.loads(done.stdout)
        shown = {one["id"] for one in document["runs"]}
        assert "other/001-fresh" in shown, damage
        assert ("quickstart/001-fresh" in shown) != any(one["level"] == "error" for one in document["findings"]), damage
        assert len(document["findings"]) == (done.returncode == 1), damage
        assert all(one["where"].startswith(str(file)) for one in document["findings"])
        assert any("other" in title for title in entry_menu.subjects(runs)[0].values()), damage


@pytest.mark.parametrize("name", [*READ, "recipe.toml", "adapter/proof.json", "checkpoints/checkpoint-4/manifest.json"])
def test_planning_a_continuation_of_a_damaged_run_is_no_traceback(runs: Path, name: str) -> None:
    plan = ("plan", "quickstart.toml", "--set", "strategy=incremental", "--set", "train.max_steps=8")
    skip = ("run", "quickstart.toml", "--on-existing", "skip")
    assert told(runs, *plan) == told(runs, *skip) == ""  # as long as nothing is damaged
    for _damage in damaged(runs / "quickstart" / "001-fresh" / name):
        told(runs, *plan)
        told(runs, *skip)


@pytest.mark.parametrize(("name", "verbs"), READERS.items())
def test_what_reads_a_damaged_run_is_no_traceback(runs: Path, name: str, verbs: str) -> None:
    """Diagnosed, exported again and talked to: each says what is wrong with the file, or does without it."""
    commands = {
        "diagnose": ["diagnose", "quickstart"],
        "export": ["export", "quickstart"],
        "chat": ["chat", "quickstart", "--prompt", "hi", "--max-new-tokens", "1"],
    }
    for damage in damaged(runs / "quickstart" / "001-fresh" / name):
        for verb in verbs.split():
            done = call(runs, *commands[verb])
            assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr
            assert not done.returncode or Path(name).name in done.stderr or verb == "diagnose" or damage in UNTRUE


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_neither_exported_nor_continued(runs: Path, name: str) -> None:
    adapter = runs / "quickstart" / "001-fresh" / "adapter"
    shutil.rmtree(adapter.parent / "exports")
    for damage in damaged(adapter / name):
        assert name in told(runs, "export", "quickstart"), damage
        told(runs, "plan", "quickstart.toml", "--set", "strategy=custom", "--set", "continue.start=adapter")
    assert not list(adapter.parent.glob("exports/*"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"../../elsewhere", b"quickstart/999", b"\n" * 9999])
def test_a_damaged_current_is_no_traceback(runs: Path, content: bytes) -> None:
    (runs / "quickstart" / "current").write_bytes(content)
    for command in (
        ["runs"],
        ["chat", "quickstart", "--prompt", "hi", "--max-new-tokens", "1"],
        ["diagnose", "quickstart"],
    ):
        told(runs, *command)
    assert entry_menu.subjects(runs)[0]


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, "not-permitted"), (errno.EACCES, "not-permitted")])
def test_a_runs_folder_that_is_read_only_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """The system's refusal is injected: for root no permission binds."""
    make = Path.mkdir

    def refused(path: Path, *arguments: Any, **settings: Any) -> None:
        if "runs" in path.parts:
            raise OSError(number, os.strerror(number), str(path))
        make(path, *arguments, **settings)

    monkeypatch.setattr(Path, "mkdir", refused)
    done = call_here(tmp_path / "runs", "run", "recipes/quickstart.toml", *SHORT, "--json")
    (finding,) = json.loads(done.stdout)["findings"]
    assert done.returncode == 1 and finding["code"] == code and str(tmp_path / "runs") in finding["where"]
    assert "Traceback" not in done.stderr and os.strerror(number) in finding["why"]


@pytest.mark.parametrize(
    ("name", "kind", "verb"),
    [
        ("plan.json", PlanDocument, ["runs"]),
        ("plan.json", PlanDocument, CONTINUE),
        ("provenance.json", Provenance, ["runs"]),
        ("trainer_state.json", TrainerStateFigures, CONTINUE),
    ],
)
def test_every_field_of_a_document_is_checked(runs: Path, name: str, kind: Any, verb: list[str]) -> None:
    file = runs / "quickstart" / "001-fresh" / name
    for content in other_fields(file.read_bytes(), {field.name for field in dataclasses.fields(kind)}):
        file.write_bytes(content)
        told(runs, *verb)


@pytest.mark.parametrize("key", ["train.learning_rate", "lora.r", "lora.alpha"])
def test_the_menu_names_a_setting_that_a_plan_lacks(runs: Path, key: str) -> None:
    file = runs / "quickstart" / "001-fresh" / "plan.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["settings"] = [one for one in document["settings"] if one["key"] != key]
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FasttuneError, match=f"its field settings: {key} is missing or damaged"):
        questions.read_parent(Run(runs, "quickstart/001-fresh"))


def test_what_a_run_replaces_may_be_any_bytes(runs: Path) -> None:
    run = Run(runs, "quickstart/001-fresh")
    for content in (b"", b"\xff\xfe\x00", b"a" * 100_000, b"../other/001-fresh 0\n"):
        run.replaces.write_bytes(content)
        assert store.replaced(run) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_run_that_can_not_be_read_hides_no_other(runs: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user, or on a disk that fails. The test may run as root, whom permissions do not bind."""
    unreadable, stat = runs / "quickstart" / "001-fresh" / "adapter", os.stat

    def refusing(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(unreadable):
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refusing)
    assert store.list_series(runs) == ["other", "quickstart"]
    done = call(runs, "runs")
    assert done.returncode == 1 and "other/001-fresh" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and os.strerror(number) in done.stderr
    assert any("other" in title for title in entry_menu.subjects(runs)[0].values())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("entry", ["", "current"])
def test_a_series_that_can_not_be_listed_hides_no_other(
    runs: Path, entry: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder, or its file `current`, belongs to another user or lies on a disk that fails."""
    unreadable = str(runs / "quickstart" / entry)

    def refuse(call: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path) == unreadable:
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *arguments, **options)

        return refusing

    for module, name in ((os, "listdir"), (io, "open")):
        monkeypatch.setattr(module, name, refuse(getattr(module, name)))
    done = call(runs, "runs")
    assert done.returncode == 1 and "other/001-fresh" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and f"{unreadable}: " in done.stderr
    assert ("quickstart/001-fresh" in done.stdout) == bool(entry)
    unlisted: list[Finding] = []
    assert any("other" in title for title in entry_menu.subjects(runs, unlisted)[0].values())
    context = click.Context(click.Command("runs"))
    context.params["root"] = str(runs)
    completed = [one.value for one in command_line.complete_run(context, click.Option(["--x"]), "")]
    assert "other/001-fresh" in completed and ("quickstart" in completed) == bool(entry)
    if not entry:
        assert [finding.where for finding in unlisted] == [unreadable]
        assert "error: " in told(runs, "runs", "quickstart")


def test_reading_needs_no_right_to_write(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs` and `chat` of a folder that somebody else owns."""
    for path in (runs, *runs.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(os, "mkdir", pytest.fail)
    monkeypatch.setattr(os, "replace", pytest.fail)
    monkeypatch.setattr(
        llama, "open_gguf", lambda path, num_ctx: contextlib.nullcontext(SimpleNamespace(num_ctx=num_ctx))
    )
    monkeypatch.setattr(llama, "token_texts", lambda model, ids, sampling: iter(["hello"]))
    assert "quickstart/001-fresh" in call(runs, "runs").stdout
    assert call(runs, "chat", "quickstart", "--prompt", "hi").stdout == "hello\n"
    for path in (runs, *runs.rglob("*")):
        path.chmod(0o755)


def test_a_healthy_child_is_shown_beside_its_damaged_parent(runs: Path) -> None:
    """Also where the documents of two runs name each other."""
    series = runs / "quickstart"
    shutil.copytree(series / "001-fresh", series / "002-retune")
    plan = json.loads((series / "002-retune" / "plan.json").read_text(encoding="utf-8"))
    for name, parent in (("002-retune", "001-fresh"), ("001-fresh", "002-retune")):
        document = plan | {"parent": f"quickstart/{parent}", "start": "checkpoint"}
        (series / name / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    assert call(runs, "runs").returncode == 0
    (series / "001-fresh" / "history.jsonl").write_text("{\n", encoding="utf-8")
    done = call(runs, "runs")
    assert done.returncode == 1 and "quickstart/002-retune" in done.stdout
    assert "history.jsonl:1" in done.stderr and "remove this line" in done.stderr


@pytest.mark.parametrize(
    "name", ["kill/../quickstart", "quickstart/../quickstart", "..", ".", "../runs", "quickstart/999"]
)
def test_a_name_that_is_no_run_is_named(runs: Path, name: str) -> None:
    assert f"no run called {name}" in told(runs, "runs", name)


def test_runs_of_a_run_shows_that_run(runs: Path, fasttune: Cli) -> None:
    done = call(runs, "runs", "quickstart/001")
    assert done.returncode == 0 and "quickstart/001-fresh" in done.stdout and "4 steps" in done.stdout
    listed = json.loads(call(runs, "runs", "quickstart/001-fresh", "--json").stdout)["runs"]
    assert [one["id"] for one in listed] == ["quickstart/001-fresh"] and listed[0]["current"]
