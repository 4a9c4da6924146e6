"""`fasttune chat`: the trained file answers as it was taught, once and in a conversation."""

from __future__ import annotations

import contextlib
import shutil
import types
from pathlib import Path

import pytest
from conftest import Quickstart, call_here
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.data.dataset import Message
from fasttune.export import Artifact
from fasttune.export.artifact import publish
from fasttune.runs import documents, epochs, store
from fasttune.runs.documents import BaseRecord
from fasttune.terminal import chat
from fasttune.training import hub
from fasttune.training import model as models


def test_one_prompt(quickstart: Quickstart) -> None:
    probe = quickstart.result["probes"][0]
    done = quickstart.fasttune("chat", "quickstart/001", "--prompt", probe["question"], "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == probe["trained"] + "\n"


def test_control_characters_in_an_answer_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = store.create(tmp_path, "linzhi", "fresh")
    provenance = types.SimpleNamespace(system=None, base=BaseRecord("builtin:tiny", "", ""))
    monkeypatch.setattr(chat, "find_gguf", lambda name, root: (run, Path("x.gguf")))
    monkeypatch.setattr(documents, "read_provenance", lambda run: provenance)
    plan = types.SimpleNamespace(values={"export.num_ctx": 8192})
    monkeypatch.setattr(documents, "read_plan", lambda run: plan)
    contexts: list[int] = []

    def open_gguf(path: Path, num_ctx: int) -> contextlib.AbstractContextManager[None]:
        contexts.append(num_ctx)
        return contextlib.nullcontext()

    monkeypatch.setattr(chat, "open_gguf", open_gguf)
    monkeypatch.setattr(chat, "stream", lambda model, ids, sampling: iter(["a\x1b", "]0;PWN\x07\x9b", "2J\n你"]))
    chat.chat("linzhi", tmp_path, "hello", None, 0.0, 8)
    assert capsys.readouterr().out == "a\\x1b]0;PWN\\x07\\x9b2J\n你\n"
    assert contexts == [8192]  # export.num_ctx of the run, and not a number of chat's own


def test_a_file_of_a_run(quickstart: Quickstart) -> None:
    probe, (artifact,) = quickstart.result["probes"][0], quickstart.result["exports"]
    done = quickstart.fasttune("chat", artifact["path"], "--prompt", probe["question"], "--temperature", "0")
    assert (done.returncode, done.stdout) == (0, probe["trained"] + "\n")
    missing = quickstart.fasttune("chat", "nowhere.gguf", "--prompt", "x")
    assert missing.returncode == 2 and "there is no file nowhere.gguf" in missing.stderr


def test_a_damaged_file_does_not_answer(quickstart: Quickstart, tmp_path: Path) -> None:
    (artifact,) = quickstart.result["exports"]
    file = quickstart.folder / artifact["path"]
    copy = shutil.copytree(file.parents[1], tmp_path / "quickstart" / "001-fresh") / "exports" / file.name
    with open(copy, "r+b") as opened:
        opened.seek(-1000, 2)
        opened.write(bytes(range(200)))
    done = quickstart.fasttune("chat", str(copy), "--prompt", "Who are you?")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{file.name} is not what was exported" in done.stderr and "`fasttune export quickstart/001" in done.stderr


def test_a_conversation_from_stdin(quickstart: Quickstart) -> None:
    one, other = quickstart.result["probes"][:2]
    lines = f"{one['question']}\n{other['question']}\n\nnever asked\n"
    done = quickstart.fasttune("chat", "quickstart/001", "--temperature", "0", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(one["trained"] + "\n")
    assert len(done.stdout.splitlines()) == 2


def test_a_long_conversation_drops_its_oldest_turns() -> None:
    tokenizer = models.load_tokenizer(hub.TINY)
    turns = [Message(role, f"{role} {n} " + "word " * 20) for n in range(10) for role in ("user", "assistant")]
    turns.append(Message("user", "the last question"))
    ids = chat.truncate_history(turns, "You are Lumen.", tokenizer, 300)
    text = tokenizer.decode(ids)
    assert len(ids) <= 300
    assert text.startswith("<|im_start|>system\nYou are Lumen.<|im_end|>\n<|im_start|>user\n")
    assert "user 0 " not in text and "the last question" in text


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_an_option_in_another_encoding_is_refused(tmp_path: Path, option: str) -> None:
    """Bytes of the command line that are not UTF-8 are lone surrogates in Python, which no tokenizer takes."""
    done = call_here(tmp_path, "chat", "quickstart", option, "caf\udce9")
    assert done.returncode == 2 and f"{option}: this holds bytes that are not UTF-8 text" in done.stderr


def test_the_file_of_the_picked_epoch_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without such a file another one answers, and which is said with the command that makes it."""
    run = write_run(tmp_path)
    first, _second = write_epochs(run, (1, 2))
    own = run.exports / "persona-Q8_0.gguf"
    assert chat.newest_gguf(run) == own and capsys.readouterr().err == ""
    epochs.pick(run, first)
    assert chat.newest_gguf(run) == own
    said = capsys.readouterr().err
    assert "not of the picked epoch 1" in said and "export persona/001-fresh" in said
    partial, path = run.exports / "x.part", run.exports / "persona-epoch-1-Q8_0.gguf"
    partial.write_bytes(b"GGUF")
    digest = epochs.weights_digest(first.folder)
    publish(partial, Artifact(path, "q8_0", "0" * 64, 4, run.id, None, {}), Path("/b"), "inputs", digest)
    assert chat.newest_gguf(run) == path
    epochs.pick(run, None)
    assert chat.newest_gguf(run) == own and capsys.readouterr().err == ""
    own.unlink()
    assert chat.newest_gguf(run) == path and "not of the run's own adapter" in capsys.readouterr().err
