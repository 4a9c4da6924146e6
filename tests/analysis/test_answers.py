"""Answers of adapters, bases, files and models in Ollama: each as its engine gives them, and nothing asked twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Quickstart
from ollama_server import running_server

from fasttune.analysis.answers import (
    GgufSource,
    LoadedModel,
    OllamaSource,
    Prompt,
    Source,
    TorchSource,
    ask,
    drawing,
)
from fasttune.export import llama
from fasttune.export.llama import Sampling
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import answer_store, generation, hub

PROMPTS = [Prompt("你是谁？", "你是小灯。"), Prompt("Who are you?", None), Prompt("什么是勇气？", "你是小灯。")]
GREEDY, DRAWN = Sampling(16), Sampling(16, temperature=1.5, top_p=1.0, seed=7)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def loaded(quickstart: Quickstart) -> LoadedModel:
    return LoadedModel(hub.TINY, ModelRecipe(base="builtin:tiny"), quickstart.folder / "adapter")


@pytest.fixture(scope="module")
def gguf(quickstart: Quickstart) -> GgufSource:
    return GgufSource("file", quickstart.folder / "exports" / "quickstart-Q8_0.gguf", hub.TINY)


@dataclass
class Parrot:
    """A source that repeats the question; `asked` are the questions that reached it."""

    name: str = "parrot"
    identity: str | None = "parrot 1"
    asked: list[str] = field(default_factory=list)

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, str]]:
        for prompt in reversed(prompts):
            self.asked.append(prompt.question)
            yield prompt, f"{prompt.system}: {prompt.question} {sampling.seed}"


def test_answers_come_in_the_order_of_the_prompts_and_once_each() -> None:
    parrot = Parrot()
    texts = ask(parrot, [*PROMPTS, PROMPTS[0]], GREEDY)
    assert texts == [f"{one.system}: {one.question} 0" for one in [*PROMPTS, PROMPTS[0]]]
    assert len(parrot.asked) == 3


def test_nothing_is_asked_twice(capsys: pytest.CaptureFixture[str]) -> None:
    ask(Parrot(), PROMPTS[:2], GREEDY)
    again = Parrot()
    assert ask(again, PROMPTS, GREEDY) == ask(Parrot(), PROMPTS, GREEDY)
    assert again.asked == [PROMPTS[2].question]
    assert "parrot answers 1/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "prompt", "sampling"),
    [
        (Parrot(identity="parrot 2"), PROMPTS[0], GREEDY),
        (Parrot(), Prompt(PROMPTS[0].question, None), GREEDY),
        (Parrot(), Prompt(PROMPTS[0].question, ""), GREEDY),
        (Parrot(), PROMPTS[0], Sampling(17)),
        (Parrot(), PROMPTS[0], DRAWN),
    ],
)
def test_another_model_prompt_or_sampling_is_asked(source: Parrot, prompt: Prompt, sampling: Sampling) -> None:
    ask(Parrot(), PROMPTS, GREEDY)
    source.asked.clear()
    ask(source, [prompt], sampling)
    assert source.asked


def test_what_is_stopped_keeps_what_was_answered() -> None:
    class Stopped(Parrot):
        def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, str]]:
            yield next(super().answers(prompts, sampling))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(Stopped(), PROMPTS, GREEDY)
    rest = Parrot()
    ask(rest, PROMPTS, GREEDY)
    assert len(rest.asked) == 2


def test_a_source_of_unknown_identity_is_always_asked() -> None:
    unknown = Parrot(identity=None)
    ask(unknown, PROMPTS, GREEDY)
    ask(unknown, PROMPTS, GREEDY)
    assert len(unknown.asked) == 6


def test_adapter_and_file_give_the_same_greedy_answers(loaded: LoadedModel, gguf: GgufSource) -> None:
    """Q8_0 is near enough on a model that has memorized its answers."""
    assert ask(TorchSource("adapter", loaded, True), PROMPTS, GREEDY) == ask(gguf, PROMPTS, GREEDY)


def test_base_and_adapter_are_told_apart(loaded: LoadedModel) -> None:
    base, tuned = TorchSource("base", loaded, False), TorchSource("tuned", loaded, True)
    assert base.identity != tuned.identity
    assert ask(base, PROMPTS, GREEDY) != ask(tuned, PROMPTS, GREEDY)


def test_a_released_model_is_freed_also_the_first_of_a_process() -> None:
    code = (
        "import weakref; from fasttune.analysis.answers import LoadedModel\n"
        "from fasttune.recipe.schema import ModelRecipe; from fasttune.training import hub\n"
        "loaded = LoadedModel(hub.TINY, ModelRecipe(base='builtin:tiny'), None)\n"
        "model = weakref.ref(loaded.model)\nassert model() is not None\n"
        "loaded.release()\nprint(model() is None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_kept_answers_load_no_model(quickstart: Quickstart, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh() -> TorchSource:
        recipe = ModelRecipe(base="builtin:tiny")
        return TorchSource("tuned", LoadedModel(hub.TINY, recipe, quickstart.folder / "adapter"), True)

    first = ask(fresh(), PROMPTS, GREEDY)
    monkeypatch.setattr(generation, "load", None)
    assert ask(fresh(), PROMPTS, GREEDY) == first


@pytest.mark.parametrize("kind", ["adapter", "file"])
def test_a_seeds_answer_does_not_depend_on_what_else_is_asked(
    kind: str, loaded: LoadedModel, gguf: GgufSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Source = TorchSource("tuned", loaded, True) if kind == "adapter" else gguf
    together = ask(source, PROMPTS, DRAWN)
    monkeypatch.setattr(answer_store, "read", lambda names: {})
    assert [ask(source, [one], DRAWN)[0] for one in PROMPTS] == together
    other = Sampling(16, temperature=1.5, top_p=1.0, seed=8)
    assert ask(source, PROMPTS, other) != together


class Counting:
    """A stand-in for a loaded file over 40 tokens, whose logits are noise that the sequence so far decides, and which
    never ends an answer by itself."""

    num_ctx = 100

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return np.random.default_rng(list(ids)).normal(size=(1, 40)).astype(np.float32) + (np.arange(40) % 7 == 3)

    def ends_generation(self, token: int) -> bool:
        return False

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


@pytest.mark.parametrize("sampling", [Sampling(60, 0.0, repeat_penalty=1.5), Sampling(60, 0.9, 0.8, 5, 12, 1.3),
                                      Sampling(60, 0.7, 1.0, 6, 0, 1.0)])  # fmt: skip
def test_torch_draws_what_llama_cpp_draws(sampling: Sampling) -> None:
    """The same logits give the same tokens whoever computes them: temperature, top-k, top-p and the penalty on prompt
    and answer."""
    model, prompt = Counting(), [3, 10, 17]
    drawn = list(b"".join(llama.generate(model, list(prompt), sampling)))  # type: ignore[arg-type]
    choose, said = drawing([[1], prompt], sampling), list(prompt)
    while len(said) < len(prompt) + 60:
        said.append(choose(1, torch.from_numpy(model.logits(said)[0])))
    assert said[len(prompt) :] == drawn
    if sampling.repeat_penalty != 1:
        plain = replace(sampling, repeat_penalty=1.0)
        assert drawn != list(b"".join(llama.generate(model, list(prompt), plain)))  # type: ignore[arg-type]


def test_a_file_of_unknown_origin_is_asked_in_chatml(gguf: GgufSource) -> None:
    unknown = GgufSource("file", gguf.path, None)
    with_system = [prompt for prompt in PROMPTS if prompt.system]
    assert ask(unknown, with_system, GREEDY) == ask(gguf, with_system, GREEDY)
    with llama.open_gguf(gguf.path, 0, vocab_only=True) as vocabulary:
        (ids,) = unknown.token_ids([PROMPTS[1]])
        assert b"".join(map(vocabulary.token_bytes, ids)).startswith(b"user\nWho are you?")


def test_a_model_in_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server:
        server.models["linzhi:latest"] = {}
        source = OllamaSource("ollama:linzhi", "linzhi", server.host)
        assert ask(source, PROMPTS, GREEDY) == [prompt.question.upper() for prompt in PROMPTS]
        assert [len(body["messages"]) for body in server.asked] == [2, 1, 2]
        ask(OllamaSource("ollama:linzhi", "linzhi", server.host), PROMPTS, GREEDY)
        assert len(server.asked) == 3
