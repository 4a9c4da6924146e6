"""The models that `fasttune chat` loads, by the names of sources.py, and which of a run's models a name stands for.

linzhi, linzhi/002-retune         the GGUF file that the run's Modelfile names, else its adapter by torch
linzhi@62, linzhi@epoch-2         the adapter of a checkpoint or a kept epoch, by torch
linzhi-Q8_0.gguf                  a file, in a run's exports or anywhere
base                              the base that another named run was trained on, by torch
builtin:tiny, a folder, a name on the Hub that was downloaded before: a base without any adapter, by torch
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasttune.analysis import sources
from fasttune.analysis.answers import GgufSource, LoadedModel, OllamaSource, TorchSource, drawing
from fasttune.analysis.conversation import Speaker
from fasttune.analysis.sources import Named
from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, Finding, UsageError, _, show_findings, usage_error
from fasttune.data.dataset import Message
from fasttune.data.tokenize import chat_tokens
from fasttune.export import chatml, llama
from fasttune.export.artifact import is_of_served_adapter, require_unchanged
from fasttune.export.llama import Sampling
from fasttune.export.served import served_gguf
from fasttune.export.serving import DEFAULT, Serving, serving_of_run
from fasttune.planning import number_type
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import adapters, documents, epochs, store
from fasttune.runs.store import Run
from fasttune.training import generation, hub, provenance
from fasttune.training import model as models

BASE = "base"
UNKNOWN_CONTEXT = 4096  # tokens, for a model that no run says the context of
LONGEST_ANSWER = 512  # tokens, where no run says it, or it says that there is no limit


@dataclass(frozen=True)
class GgufSpeaker:
    """A GGUF file in llama.cpp, which must stay open. `tokenizer` is that of training; None for a file of unknown
    origin, which is asked in ChatML."""

    model: llama.Model
    tokenizer: Any

    @property
    def num_ctx(self) -> int:
        return self.model.num_ctx

    def encode(self, messages: Sequence[Message]) -> Sequence[int]:
        if self.tokenizer is not None:
            return chat_tokens(messages, self.tokenizer)
        plain = [{"role": one.role, "content": one.content} for one in messages]
        return self.model.tokenize(chatml.plain_chatml(plain))

    def token_texts(self, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
        return llama.token_texts(self.model, ids, sampling)


@dataclass(frozen=True)
class TorchSpeaker:
    """The base of a loaded model, or with `adapter` the trained one, by torch."""

    loaded: LoadedModel
    adapter: bool
    num_ctx: int

    def encode(self, messages: Sequence[Message]) -> Sequence[int]:
        return chat_tokens(messages, self.loaded.tokenizer)

    def token_texts(self, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        most = min(sampling.max_new_tokens, self.num_ctx - len(ids))
        if most < 1:
            raise llama.prompt_too_long(len(ids), self.num_ctx)
        choose = drawing([ids], sampling)
        with generation.adapter_switched(model, on=self.adapter):
            tokens = generation.stream(model, tokenizer, ids, most, choose)
            with contextlib.closing(tokens):
                yield from decoded(tokens, tokenizer)


def decoded(tokens: Iterator[int], tokenizer: Any) -> Iterator[str]:
    """The text of each token id, "" for one that ends within a character."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    for token in tokens:
        yield stream.step(tokenizer.backend_tokenizer, token) or ""


def find(names: Sequence[str], root: Path, *, adapter: bool) -> list[Named]:
    """The models of names, in their order; `adapter` takes a run's adapter in place of its GGUF file.

    Raises FasttuneError where one does not exist, is damaged, or can't be talked to here.
    """
    found = {name: find_one(name, root, adapter=adapter) for name in names if name != BASE}
    if BASE in names:
        found[BASE] = sources.base_of(first_of_a_run(found, root))
    return [found[name] for name in names]


def first_of_a_run(found: dict[str, Named], root: Path) -> Named:
    """The first model that belongs to a run. Raises UsageError where none does."""
    for model in found.values():
        if model.run is not None:
            return model
    fix = _("name the run beside it, `{command}`, or the base itself, such as builtin:tiny",
            command=command_line(["chat", "RUN", BASE, *runs_option(root)]))  # fmt: skip
    raise usage_error(
        "base-unknown", _("`base` is the base of another model that is named with it"), where=BASE, fix=fix
    )


def find_one(name: str, root: Path, *, adapter: bool) -> Named:
    """The model that a name other than `base` stands for. Raises FasttuneError as `find` does."""
    named = sources.find(name, root) if names_no_run(name) else speaks_for(name, root, adapter=adapter)
    if isinstance(named.source, OllamaSource):
        fix = _("`ollama run {model}` talks to it; `{command}` compares it", model=named.source.model,
                command=command_line(["compare", name, "RUN", *runs_option(root)]))  # fmt: skip
        raise usage_error("not-here", _("a model in Ollama is talked to there"), where=name, fix=fix)
    if isinstance(named.source, GgufSource) and named.run is not None:
        require_unchanged(named.source.path)
    return named


def names_no_run(name: str) -> bool:
    """Whether a name is that of a file, a checkpoint, a kept epoch or a model in Ollama."""
    return name.endswith(".gguf") or name.startswith("ollama:") or adapters.is_named(name)


def speaks_for(name: str, root: Path, *, adapter: bool) -> Named:
    """The model of a run's or a base's name. Raises FasttuneError where neither has it."""
    try:
        run = store.find(root, name)
    except UsageError:
        folder = local_base(name)
        if folder is None:
            raise
        model = number_type.chosen(ModelRecipe(base=name))
        return Named(TorchSource(name, LoadedModel(folder, model, None), adapter=False), None, None)
    file = None if adapter else served_gguf(run)
    if file is None:
        return sources.find(name, root)
    if not is_of_served_adapter(run, file):
        show_findings([another_epoch(run, file)])
    return sources.gguf(file, root)


def another_epoch(run: Run, path: Path) -> Finding:
    """The warning that a file of another epoch than the picked one answers, or of one although none is picked."""
    picked = epochs.picked_epoch(run)
    what = _("{file} answers, which is not of the run's own adapter", file=path.name)
    if picked:
        epoch = epochs.epoch_word(picked.epoch)
        what = _("{file} answers, which is not of the picked epoch {epoch}", file=path.name, epoch=epoch)
    export = command_line(["export", run.id, "--gguf", "q8_0", *runs_option(run.root)])
    fix = _("write a GGUF file: `{command}`", command=export)
    return Finding("another-epoch-answers", "warning", run.id, what, fix=fix)


def local_base(name: str) -> Path | None:
    """The folder of a base by its own name, where it is on this disk; None where there is none."""
    if name == "builtin:tiny" or (Path(name).expanduser() / "config.json").is_file() or name.count("/") == 1:
        return hub.find_offline(ModelRecipe(base=name))
    return None


@contextlib.contextmanager
def opened(named: Named) -> Iterator[Speaker]:
    """A model, loaded for as long as the block lasts. Raises FasttuneError where it can't be loaded."""
    source, num_ctx = named.source, context_of(named.run)
    if isinstance(source, GgufSource):
        tokenizer = None if source.tokenizer_of is None else models.load_tokenizer(source.tokenizer_of)
        with llama.open_gguf(source.path, num_ctx) as model:
            yield GgufSpeaker(model, tokenizer)
    elif isinstance(source, TorchSource):
        yield TorchSpeaker(loaded(source), source.adapter, num_ctx)
    else:
        raise TypeError(source)


def loaded(source: TorchSource) -> LoadedModel:
    """The model of a source, in memory: what is cached there is loaded now and not at the first question."""
    _model, _tokenizer = source.loaded.model, source.loaded.tokenizer
    return source.loaded


def context_of(run: Run | None) -> int:
    """The context in tokens: export.num_ctx of the run, as its Modelfile has it for Ollama."""
    return UNKNOWN_CONTEXT if run is None else documents.read_setting(run, "export.num_ctx", int)


def served_sampling(model: Named, temperature: float | None = None, max_new_tokens: int | None = None) -> Sampling:
    """How the answers of a model are sampled: by what is given, and where it is None as the model's run is served, in
    its Modelfile and in Ollama. A temperature of 0 that is given is plain: the likeliest token each time, no penalty.

    A model without a run, or whose base is gone, is sampled as a base that recommends nothing. Unless it is given, the
    longest answer takes half of the context at most: earlier turns need the rest.
    """
    served, num_ctx = serving_of(model)
    asked = served.num_predict if served.num_predict and served.num_predict > 0 else LONGEST_ANSWER
    most = min(asked, num_ctx // 2) if max_new_tokens is None else max_new_tokens
    if temperature == 0:
        return Sampling(most)
    found = Sampling(most, served.temperature if temperature is None else temperature, top_k=served.top_k or 0)
    return replace(
        found,
        top_p=found.top_p if served.top_p is None else served.top_p,
        repeat_penalty=found.repeat_penalty if served.repeat_penalty is None else served.repeat_penalty,
    )


def serving_of(model: Named) -> tuple[Serving, int]:
    """How a model's run is served, and its context in tokens; DEFAULT and UNKNOWN_CONTEXT for a model without a run, or
    whose base is gone."""
    if model.run is None:
        return DEFAULT, UNKNOWN_CONTEXT
    try:
        recipe = sources.run_recipe(model.run)
        base = provenance.locate_base(model.run, recipe.model)
        return serving_of_run(model.run, base, recipe.export), recipe.export.num_ctx
    except FasttuneError:
        return DEFAULT, UNKNOWN_CONTEXT
