"""The held-out samples of a run, and what a model makes of them: the loss of each by torch or by llama.cpp."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fasttune.analysis import sources
from fasttune.analysis.answers import GgufSource, Prompt, Source, TorchSource
from fasttune.analysis.sources import Named
from fasttune.console import FasttuneError, Finding, _
from fasttune.data.dataset import Sample, load_dataset
from fasttune.data.tokenize import Example, Learn, tokenize_samples
from fasttune.export import llama
from fasttune.export.token_loss import token_loss
from fasttune.recipe.schema import DataRecipe
from fasttune.runs import documents
from fasttune.runs.judgement import ENOUGH_HELD_OUT
from fasttune.runs.store import Run
from fasttune.training import answer_store, generation
from fasttune.training import model as models
from fasttune.training.generation import SampleScore
from fasttune.training.progress import CountLine


@dataclass(frozen=True)
class HeldOut:
    """Held-out samples: `prompts` and `references` are the first question of each and the answer that stands there."""

    samples: tuple[Sample, ...] = ()
    learn: Learn = "assistant"

    @property
    def prompts(self) -> list[Prompt]:
        """The first question of each sample, with its system prompt."""
        return [first_exchange(sample)[0] for sample in self.samples]

    @property
    def references(self) -> list[str]:
        """The first answer of each sample."""
        return [first_exchange(sample)[1] for sample in self.samples]


def load(run: Run | None, most: int) -> tuple[HeldOut, list[Finding]]:
    """Up to `most` held-out samples of a run, evenly from all of them, and why there are none."""
    if run is None:
        what = _("no held-out samples: none of the models belongs to a run")
        return HeldOut(), [Finding("no-held-out-data", "info", "", what)]
    recipe = sources.run_recipe(run)
    if not recipe.data.val:
        what = _("nothing is held out: loss, accuracy and chrF can't be computed")
        fix = _("hold out {enough} or more (`data.val`), and train again", enough=ENOUGH_HELD_OUT)
        return HeldOut(), [Finding("no-held-out-data", "info", run.id, what, fix=fix)]
    try:
        found = load_dataset(recipe.data, recipe.train.seed)
    except FasttuneError as problem:
        what = _("the held-out samples can't be read: {reason}", reason=problem.findings[0].what)
        fix = _("call it in the folder from which the run was trained")
        return HeldOut(), [Finding("no-held-out-data", "warning", problem.findings[0].where, what, fix=fix)]
    findings = []
    if found.fingerprint != documents.read_provenance(run).data.fingerprint:
        what = _("the data has changed since this run was trained; samples may have been trained on")
        findings.append(Finding("other-data", "warning", run.id, what))
    chosen = found.held_out[:: max(1, -(-len(found.held_out) // most))] if most else ()
    return HeldOut(tuple(chosen), recipe.data.learn), findings


def other_data(named: Sequence[Named]) -> list[Finding]:
    """The note about two runs that were trained on different data: one may have seen what the other holds out."""
    runs = [one.run for one in named if one.run is not None]
    prints = {documents.read_provenance(run).data.fingerprint for run in runs}
    if len(prints) < 2:
        return []
    what = _("{one} and {other} were trained on different data", one=runs[0].id, other=runs[1].id)
    why = _("what {one} holds out may be among the training samples of {other}", one=runs[0].id, other=runs[1].id)
    return [Finding("other-data", "info", "", what, why)]


def first_exchange(sample: Sample) -> tuple[Prompt, str]:
    """The first question of a conversation with its system prompt, and the answer to it."""
    system = sample.messages[0].content if sample.messages[0].role == "system" else None
    question, answer = (message.content for message in sample.messages[system is not None :][:2])
    return Prompt(question, system), answer


# Losses -------------------------------------------------------------------------------------------------------------


def scores(source: Source, held_out: HeldOut) -> tuple[SampleScore, ...]:
    """The score of each sample, in order; none of a model whose logits can't be had (Ollama, a file of unknown origin).

    Scores are kept as answers are. Raises FasttuneError where the model can't be used.
    """
    if isinstance(source, TorchSource):
        base = source.loaded.base
    elif isinstance(source, GgufSource) and source.tokenizer_of is not None:
        base = source.tokenizer_of
    else:
        return ()
    recipe = DataRecipe(train=(), learn=held_out.learn)
    longest = 2**31
    examples = tokenize_samples(held_out.samples, models.load_tokenizer(base), recipe, longest).examples
    names = {example: name_of(source.identity, example) for example in examples}
    kept = {name: SampleScore(**json.loads(text)) for name, text in answer_store.read(list(names.values())).items()}
    missing = [example for example in examples if names[example] not in kept]
    if missing:
        with CountLine(_("{model}: held-out loss", model=source.name), len(missing)) as line:
            for example, score in zip(missing, computed(source, missing), strict=True):
                kept[names[example]] = score
                answer_store.write({names[example]: json.dumps(vars(score))})
                line.advance()
    return tuple(kept[names[example]] for example in examples)


def computed(source: TorchSource | GgufSource, examples: Sequence[Example]) -> Iterator[SampleScore]:
    """The score of each example by the source's own engine."""
    if isinstance(source, TorchSource):
        with generation.adapter_switched(source.loaded.model, on=source.adapter):
            yield from generation.score_samples(source.loaded.model, examples, source.loaded.recipe)
        return
    with llama.open_gguf(source.path, max(len(example.tokens) for example in examples)) as model:
        for example in examples:
            loss, hits = token_loss(model, example.tokens, example.supervised)
            tokens = sum(end - start for start, end in example.supervised)
            yield SampleScore(example.sample_id, loss, hits, tokens)


def name_of(identity: str | None, example: Example) -> bytes:
    """The name under which the score of an example is kept."""
    decides = ["score", identity, example.sample_id, example.tokens, example.supervised]
    return hashlib.sha256(json.dumps(decides).encode()).digest()
