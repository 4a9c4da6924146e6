"""Which model a name of `fasttune chat` stands for, and that adapter and file speak alike."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from conftest import Quickstart
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.analysis import speakers
from fasttune.analysis.answers import GgufSource, TorchSource
from fasttune.analysis.conversation import Conversation
from fasttune.console import FasttuneError, UsageError
from fasttune.data.dataset import Message
from fasttune.export import Artifact
from fasttune.export.artifact import publish
from fasttune.export.llama import Sampling
from fasttune.runs import epochs
from fasttune.training import hub
from fasttune.training import model as models


def test_the_names(quickstart: Quickstart) -> None:
    root = quickstart.folder.parents[1]
    (artifact,) = quickstart.result["exports"]
    run, base = speakers.find(["quickstart/001", "base"], root, adapter=False)
    assert isinstance(run.source, GgufSource) and run.source.name == Path(artifact["path"]).name
    assert isinstance(base.source, TorchSource) and not base.source.adapter and base.source.name == "base"
    (adapter,) = speakers.find(["quickstart/001"], root, adapter=True)
    assert isinstance(adapter.source, TorchSource) and adapter.source.adapter and adapter.system == run.system
    (tiny,) = speakers.find(["builtin:tiny"], root, adapter=False)
    assert isinstance(tiny.source, TorchSource) and tiny.source.loaded.base == hub.TINY and tiny.system is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base", "`base` is the base of another model"),
        ("ollama:linzhi", "a model in Ollama is talked to there"),
        ("nobody", "no run called nobody"),
        ("nobody/001", "no run called nobody/001"),
        ("gone.gguf", "there is no file gone.gguf"),
        ("quickstart/001@7", "has no checkpoint at step 7"),
    ],
)
def test_names_of_nothing(quickstart: Quickstart, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        speakers.find([name], quickstart.folder.parents[1], adapter=False)


def test_adapter_and_file_speak_alike(quickstart: Quickstart) -> None:
    """Token by token, as `fasttune run` answered the same question at once; the base says something else."""
    probe, root = quickstart.result["probes"][0], quickstart.folder.parents[1]
    said = {}
    for name, adapter in (("quickstart/001", True), ("quickstart/001", False), ("base", False)):
        names = ["quickstart/001", name] if name == "base" else [name]
        named = speakers.find(names, root, adapter=adapter)[-1]
        with speakers.opened(named) as speaker:
            conversation = Conversation(speaker, named.system)
            said[name, adapter] = "".join(conversation.ask(probe["question"], Sampling(64)))
    assert said["quickstart/001", True].strip() == said["quickstart/001", False].strip() == probe["trained"]
    assert said["base", False].strip() == probe["base"]


@pytest.mark.parametrize("adapter", [True, False])
def test_adapter_and_file_are_penalized_for_what_they_said(quickstart: Quickstart, adapter: bool) -> None:
    """By a penalty that no logit outweighs: nothing is said twice."""
    (named,) = speakers.find(["quickstart/001"], quickstart.folder.parents[1], adapter=adapter)
    with speakers.opened(named) as speaker:
        ids = speaker.encode([Message("user", "hello")])
        pieces = [piece for piece in speaker.token_texts(ids, Sampling(30, repeat_penalty=1e6)) if piece]
    assert len(pieces) == len(set(pieces)) > 5


def test_a_prompt_that_fills_the_context(quickstart: Quickstart) -> None:
    loaded = speakers.find(["builtin:tiny"], quickstart.folder.parents[1], adapter=False)[0]
    with speakers.opened(loaded) as opened:
        assert isinstance(opened, speakers.TorchSpeaker)
        small = speakers.TorchSpeaker(opened.loaded, False, num_ctx=12)
        with pytest.raises(FasttuneError, match=r"the prompt has \d+ tokens, the context 12"):
            list(Conversation(small, None).ask("a question that is longer than twelve tokens, surely", Sampling(4)))


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = models.load_tokenizer(hub.TINY)
    text = "灯塔🐈‍⬛ naïve 龘\U00020bb7"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = list(speakers.decoded(iter(ids), tokenizer))
    assert len(texts) == len(ids) and "" in texts and "\ufffd" not in "".join(texts)
    assert "".join(texts) == text


def test_a_file_of_unknown_origin_is_asked_in_chatml(quickstart: Quickstart, tmp_path: Path) -> None:
    (artifact,) = quickstart.result["exports"]
    copy = tmp_path / "somebody's.gguf"
    copy.write_bytes((quickstart.folder / artifact["path"]).read_bytes())
    (named,) = speakers.find([str(copy)], tmp_path, adapter=False)
    with contextlib.ExitStack() as stack:
        unknown = stack.enter_context(speakers.opened(named))
        known = stack.enter_context(
            speakers.opened(speakers.find(["quickstart/001"], quickstart.folder.parents[1], adapter=False)[0])
        )
        messages = [Message("system", "s, 系统"), Message("user", " hello ")]
        assert list(unknown.encode(messages)) == list(known.encode(messages))


def test_the_file_of_the_picked_epoch_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without such a file another one answers, and which is said with the command that makes it."""
    run = write_run(tmp_path)
    first, _second = write_epochs(run, (1, 2))
    own = run.exports / "persona-Q8_0.gguf"

    def speaks() -> str:
        return speakers.speaks_for(run.id, tmp_path, adapter=False).source.name

    assert speaks() == own.name and capsys.readouterr().err == ""
    epochs.pick(run, first)
    assert speaks() == own.name
    said = capsys.readouterr().err
    assert "not of the picked epoch 1" in said and "export persona/001-fresh" in said
    partial, path = run.exports / "x.part", run.exports / "persona-epoch-1-Q8_0.gguf"
    partial.write_bytes(b"GGUF")
    digest = epochs.weights_digest(first.folder)
    publish(partial, Artifact(path, "q8_0", "0" * 64, 4, run.id, None, {}), Path("/b"), "inputs", digest)
    assert speaks() == path.name
    epochs.pick(run, None)
    assert speaks() == own.name and capsys.readouterr().err == ""
    own.unlink()
    assert speaks() == path.name and "not of the run's own adapter" in capsys.readouterr().err
