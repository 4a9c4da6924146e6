"""Answers of any model to a list of prompts: the base, an adapter, a GGUF file, a model in Ollama.

    source = TorchSource("linzhi", LoadedModel(base, recipe.model, run.adapter), adapter=True)
    texts = ask(source, [Prompt("你是谁？", system)], Sampling(max_new_tokens=64))

`ask` takes what was answered before from answer_store.py and asks the rest; a model is loaded only when it is asked
something. Base and adapter are one loaded model. Answers by a seed are drawn by the same function for adapters and
files, each from the beginning of its own random numbers, so they don't depend on what else is asked.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fasttune.console import _
from fasttune.data.tokenize import prompt_tokens
from fasttune.export import chatml, llama, ollama_chat
from fasttune.export.llama import Sampling
from fasttune.files import file_sha256
from fasttune.machine import package_versions
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import answer_store, device, generation, provenance
from fasttune.training import model as models
from fasttune.training.progress import CountLine

AT_ONCE = 32  # prompts of one batch
TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Prompt:
    """A question, with the system prompt before it; None for a conversation without a system message."""

    question: str
    system: str | None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.question}]


class Source(Protocol):
    """A model that can be asked. `identity` stands for all that decides its answers besides prompt and sampling; None
    where that is unknown, and no answer is kept."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str | None: ...

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, str]]:
        """Each prompt with its answer, in any order, as they come."""


def ask(source: Source, prompts: Sequence[Prompt], sampling: Sampling) -> list[str]:
    """The answers to prompts, in their order; a moving line counts those that have to be asked."""
    names = {prompt: answer_name(source, prompt, sampling) for prompt in prompts}
    kept = answer_store.read([name for name in names.values() if name])
    known = {prompt: kept[name] for prompt, name in names.items() if name in kept}
    missing = [prompt for prompt in names if prompt not in known]
    if missing:
        with CountLine(_("{model} answers", model=source.name), len(missing)) as line:
            for prompt, text in source.answers(missing, sampling):
                known[prompt] = text
                if name := names[prompt]:
                    answer_store.write({name: text})
                line.advance()
    return [known[prompt] for prompt in prompts]


def answer_name(source: Source, prompt: Prompt, sampling: Sampling) -> bytes:
    """The name under which an answer is kept; empty where it can't be."""
    if source.identity is None:
        return b""
    decides = [source.identity, prompt.system, prompt.question, asdict(sampling)]
    return hashlib.sha256(json.dumps(decides).encode()).digest()


# A base with its adapter --------------------------------------------------------------------------------------------


class LoadedModel:
    """A base in a local folder with an adapter folder, loaded when it is first used."""

    def __init__(self, base: Path, recipe: ModelRecipe, adapter: Path | None) -> None:
        self.base, self.recipe, self.adapter = base, recipe, adapter

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.base)

    @cached_property
    def model(self) -> Any:
        return generation.load(self.base, self.recipe, self.adapter)

    @cached_property
    def base_identity(self) -> str:
        """What decides the base's answers: weights, template, number type, device and packages."""
        templates = [self.base / name for name in TEMPLATE_FILES if (self.base / name).is_file()]
        figures = [str(device.compute_dtype(self.recipe)), self.recipe.load_in_4bit, device.device_type()]
        parts = [provenance.fingerprint(self.base), *map(file_sha256, templates), *figures, package_versions()]
        return json.dumps(parts)

    @cached_property
    def adapter_identity(self) -> str:
        """The same with the adapter."""
        assert self.adapter is not None
        return self.base_identity + file_sha256(self.adapter / "adapter_model.safetensors")

    def release(self) -> None:
        """Free the weights; they are loaded again when they are needed."""
        self.__dict__.pop("model", None)
        gc.unfreeze()  # frames that ran while Unsloth was imported are among what it froze, and hold the first model
        device.release_memory()


@dataclass(frozen=True)
class TorchSource:
    """The base of a loaded model, or with `adapter` the trained one."""

    name: str
    loaded: LoadedModel
    adapter: bool

    @property
    def identity(self) -> str:
        return self.loaded.adapter_identity if self.adapter else self.loaded.base_identity

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, str]]:
        """In batches of prompts of similar length, so that little is padded."""
        tokenizer = self.loaded.tokenizer
        ids = {prompt: prompt_tokens(prompt.question, prompt.system, tokenizer) for prompt in prompts}
        in_order = sorted(prompts, key=lambda prompt: len(ids[prompt]))
        with generation.adapter_switched(self.loaded.model, on=self.adapter):
            for start in range(0, len(in_order), AT_ONCE):
                batch = in_order[start : start + AT_ONCE]
                asked = [ids[one] for one in batch]
                choose = None if sampling.is_plain_greedy else drawing(asked, sampling)
                texts = generation.generate_batch(self.loaded.model, tokenizer, asked, sampling.max_new_tokens, choose)
                yield from zip(batch, texts, strict=True)


def drawing(prompts: Sequence[Sequence[int]], sampling: Sampling) -> generation.Choose:
    """Draws the next tokens of the answers to prompts of token ids, as llama.py does for a file: each answer by random
    numbers of its own, with the penalty on what prompt and answer have said last."""
    random = [llama.random_numbers(sampling) for _prompt in prompts]
    said = [list(prompt) for prompt in prompts]

    def choose(row: int, logits: Any) -> int:
        token = llama.next_token(logits.float().cpu().numpy(), said[row], sampling, random[row])
        said[row].append(token)
        return token

    return choose


# Files and Ollama ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file by llama.cpp. `tokenizer_of` is the base whose tokenizer and template make the prompts, as they did
    in training; None for a file of unknown origin, which is asked in ChatML."""

    name: str
    path: Path
    tokenizer_of: Path | None

    @cached_property
    def identity(self) -> str:
        return json.dumps([file_sha256(self.path), package_versions(("llama-cpp-python",)), bool(self.tokenizer_of)])

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, str]]:
        """One after the other; those with the same system prompt follow each other, and it is computed once."""
        in_order = sorted(prompts, key=lambda prompt: prompt.system or "")
        ids = dict(zip(in_order, self.token_ids(in_order), strict=True))
        context = max(map(len, ids.values())) + sampling.max_new_tokens
        with llama.open_gguf(self.path, context) as model:
            for prompt in in_order:
                yield prompt, llama.answer(model, ids[prompt], sampling).strip()

    def token_ids(self, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
        """The token ids of each prompt."""
        if self.tokenizer_of is not None:
            tokenizer = models.load_tokenizer(self.tokenizer_of)
            return [prompt_tokens(prompt.question, prompt.system, tokenizer) for prompt in prompts]
        with llama.open_gguf(self.path, 0, vocab_only=True) as vocabulary:
            return [vocabulary.tokenize(chatml.plain_chatml(prompt.messages)) for prompt in prompts]


@dataclass(frozen=True)
class OllamaSource:
    """A model in Ollama. Without a system message Ollama puts the model's own before the question."""

    name: str
    model: str
    host: str | None = None

    @cached_property
    def identity(self) -> str | None:
        return ollama_chat.digest(self.model, self.host)

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, str]]:
        """One after the other, each a conversation of its own."""
        with ollama_chat.connect(self.model, self.host) as answer:
            for prompt in prompts:
                yield prompt, answer(prompt.messages, sampling).strip()
