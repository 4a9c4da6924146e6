"""Two models side by side: their answers to the same questions, and figures on the same held-out samples.

    answers       each question greedily and by fixed seeds
    held-out      loss, token accuracy and perplexity over the supervised tokens, by torch or llama.cpp; none for Ollama
    chrF          of the first answer to each held-out conversation against the one that stands there
    general       loss over the general conversations that nobody trains on: what was forgotten
    length, repetition, openings     of all greedy answers (text_figures.py)
    facts         of the fact sheet, where it is asked for, with the system prompt

The held-out samples are those of the first named model that belongs to a run. Samples are named by `file:line`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fasttune.analysis import chrf, facts, held_out, sources, text_figures
from fasttune.analysis.answers import Prompt, TorchSource, ask
from fasttune.analysis.held_out import HeldOut
from fasttune.analysis.sources import Named
from fasttune.console import FasttuneError, Finding, _, language, usage_error
from fasttune.data.dataset import general_samples
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.data.general import LANGUAGES
from fasttune.export.llama import Sampling
from fasttune.files import condition_as_error
from fasttune.recipe.toml_file import read_text
from fasttune.runs import documents, epochs, store
from fasttune.runs.documents import Scores
from fasttune.runs.outcomes import Answered, HeldOutLosses, SampleLoss
from fasttune.runs.store import Run
from fasttune.training.generation import SampleScore

STANDARD = Path(__file__).parent.parent / "questions"
TEMPERATURE, TOP_P = 0.7, 0.8  # of the answers by a seed: what the Modelfile sets, and llama.py's
MOST_DIFFERENT = 5  # samples that are shown


@dataclass(frozen=True)
class Request:
    """What to compare: the names of the models, and how they are asked. `questions` is a file, one question a line;
    `seeds` the number of answers by a seed to each question, `held_out` the most held-out samples to look at."""

    names: tuple[str, ...]
    root: Path
    questions: Path | None = None
    system: str | None = None
    seeds: int = 1
    max_new_tokens: int = 128
    held_out: int = 64
    with_facts: bool = False
    sheet: Path | None = None


@dataclass(frozen=True)
class Figures:
    """The figures of one model; None for what can't be computed of it. Losses are in nats a supervised token, lengths
    in characters, the others shares, but chrF, which is 0 to 100. `general` is the loss of the general conversations by
    language, empty for a model whose logits can't be had."""

    loss: float | None
    accuracy: float | None
    perplexity: float | None
    chrf: float | None
    length: float
    repetition: float
    distinct_openings: float
    facts_kept: int | None = None
    facts: int | None = None
    general: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A held-out sample with what each model makes of it: the loss a token, or its answer's chrF; and the answers."""

    sample: str
    question: str
    reference: str
    values: Mapping[str, float]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found. `measure` is what the differences are in: "loss", "chrf" or "" where there are none."""

    models: tuple[str, ...]
    systems: Mapping[str, str | None]
    questions: tuple[Answered, ...]
    figures: Mapping[str, Figures]
    measure: str
    differences: tuple[Difference, ...]
    findings: tuple[Finding, ...] = ()


@dataclass
class Seen:
    """What one model has said and scored, while it is in memory."""

    answers: list[list[str]] = field(default_factory=list)  # by sampling, then by question
    scores: tuple[SampleScore, ...] = ()
    general: Mapping[str, float] = field(default_factory=dict)  # the loss of the general conversations, by language
    held_out: list[str] = field(default_factory=list)  # its answers to the held-out conversations
    facts: tuple[int, int] | None = None


def compare(request: Request) -> Comparison:
    """Ask and score two models. Raises FasttuneError where one of them, or a file, can't be used."""
    models = find_models(request)
    run = first_run(models)
    questions = questions_for(request, run)
    samples, findings = held_out.load(run, request.held_out)
    findings += held_out.other_data(models)
    sheet = fact_sheet(request, run)
    general = {language: HeldOut(tuple(general_samples("val", (language,)))) for language in LANGUAGES}
    seen = look_at_all(models, questions, samples, general, sheet, request)
    keep_losses(models, seen)
    measure, differences = most_different(samples, seen)
    return Comparison(
        tuple(seen),
        {model.source.name: model.system for model in models},
        answered(questions, seen),
        {name: figures(one, samples) for name, one in seen.items()},
        measure,
        differences,
        tuple(findings),
    )


def ask_only(request: Request) -> tuple[tuple[Answered, ...], Run | None]:
    """The answers of both models and nothing else, for a blind comparison; and the run that it belongs to."""
    models = find_models(request)
    run = first_run(models)
    questions = questions_for(request, run)
    seen = look_at_all(models, questions, HeldOut(), {}, None, request)
    return answered(questions, seen), run


# Who and what -------------------------------------------------------------------------------------------------------


def find_models(request: Request) -> list[Named]:
    """The two models, `base` as that of the other one; with one name alone, the base and that model.

    Raises UsageError where both are the same.
    """
    names = request.names if len(request.names) == 2 else ("base", request.names[0])
    named = {name: sources.find(name, request.root) for name in names if name != "base"}
    if len(set(names)) < 2 or not named:
        raise usage_error("nothing-to-compare", _("name two models, or one that is not `base`"))
    models = [named[name] if name in named else sources.base_of(next(iter(named.values()))) for name in names]
    if models[0].source.name == models[1].source.name:
        what = _("both names stand for {model}", model=models[0].source.name)
        raise usage_error("nothing-to-compare", what)
    lent = next((model.system for model in models if model.system is not None), None)
    return [sources.asked_with(model, request.system, lent) for model in models]


def first_run(models: Sequence[Named]) -> Run | None:
    """The run whose recipe, held-out samples and folder are used."""
    return next((model.run for model in models if model.run is not None), None)


def questions_for(request: Request, run: Run | None) -> list[str]:
    """The questions of the file; without one the recipe's probe questions and the standard ones in the language of
    those, or of the system prompt. Raises UsageError where the file is missing or holds none."""
    if request.questions is not None:
        found = read_questions(request.questions)
        if not found:
            what, fix = _("the file holds no question"), _("write one question a line")
            raise usage_error("no-questions", what, where=str(request.questions), fix=fix)
        return found
    plan = documents.read_plan(run) if run else None
    own = [str(one) for one in plan.values.get("probe.questions") or ()] if plan else []
    text = "".join(own) + ((plan.system or "") if plan else "")
    chinese = any("\u4e00" <= one <= "\u9fff" for one in text) if text else language() == "zh"
    standard = read_questions(STANDARD / ("zh.txt" if chinese else "en.txt"))
    return list(dict.fromkeys([*own, *standard]))


def read_questions(path: Path) -> list[str]:
    """The lines of a file that are neither empty nor a comment. Raises UsageError where it can't be read."""
    if not path.is_file():
        fix = _("name a file that is there, with one question a line")
        raise usage_error("no-questions", _("there is no file {file}", file=path), where="--questions", fix=fix)
    lines = [line.strip() for line in read_text(path).split("\n")]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def fact_sheet(request: Request, run: Run | None) -> FactSheet | None:
    """The fact sheet to ask: the one that is named, or with `with_facts` that of the recipe. Raises UsageError where
    there is none."""
    if request.sheet is not None:
        return read_fact_sheet(request.sheet)
    if not request.with_facts:
        return None
    if run is None:
        what, fix = _("none of the models belongs to a run"), _("name a fact sheet by `--sheet FILE`")
        raise usage_error("no-facts", what, where="--facts", fix=fix)
    return read_fact_sheet(facts.recipe_sheet(run))


# Asking -------------------------------------------------------------------------------------------------------------


def look_at_all(
    models: Sequence[Named],
    questions: Sequence[str],
    samples: HeldOut,
    general: Mapping[str, HeldOut],
    sheet: FactSheet | None,
    request: Request,
) -> dict[str, Seen]:
    """What each model says and scores, by its name. One is in memory at a time: a base with its adapter is one."""
    seen: dict[str, Seen] = {}
    for at, model in enumerate(models):
        seen[model.source.name] = look(model, questions, samples, sheet, request)
        seen[model.source.name].general = general_losses(model, general)
        following = [one.source.loaded for one in models[at + 1 :] if isinstance(one.source, TorchSource)]
        if isinstance(model.source, TorchSource) and model.source.loaded not in following:
            model.source.loaded.release()
    return seen


def look(model: Named, questions: Sequence[str], samples: HeldOut, sheet: FactSheet | None, request: Request) -> Seen:
    """All that is asked of one model."""
    prompts = [Prompt(question, model.system) for question in questions]
    greedy, seen = Sampling(request.max_new_tokens), Seen()
    for seed in range(request.seeds + 1):
        sampling = Sampling(request.max_new_tokens, TEMPERATURE, TOP_P, seed) if seed else greedy
        seen.answers.append(ask(model.source, prompts, sampling))
    if samples.samples:
        seen.held_out = ask(model.source, samples.prompts, greedy)
        seen.scores = held_out.scores(model.source, samples)
    if sheet is not None:
        answers = facts.ask_sheet(model.source, model.system, sheet, Sampling(facts.ANSWER_TOKENS))
        kept = facts.score(sheet, {facts.SERVED: answers}, facts.ANSWER_TOKENS).arms[facts.SERVED].kept
        seen.facts = kept, len(sheet.facts)
    return seen


def general_losses(model: Named, general: Mapping[str, HeldOut]) -> dict[str, float]:
    """The loss of the general conversations, by language, in nats a supervised token; empty where it can't be had."""
    scored = {language: held_out.scores(model.source, one) for language, one in general.items()}
    return {
        language: sum(one.loss for one in scores) / sum(one.tokens for one in scores)
        for language, scores in scored.items()
        if scores
    }


def keep_losses(models: Sequence[Named], seen: Mapping[str, Seen]) -> None:
    """Keep the losses of single samples in scores.json of each run whose adapter was asked, beside its base's where
    that was asked too; not where another process uses the run or the disk takes nothing, which is no reason to compare
    nothing."""
    for model in models:
        own, base = seen[model.source.name].scores, seen["base"].scores if "base" in seen else ()
        if model.run is None or not own or model.source.name != model.run.id:
            continue  # none of it is of the run's own adapter: a file, a checkpoint, the base
        of_base = {score.sample_id: score.loss / score.tokens for score in base}
        losses = [SampleLoss(one.sample_id, one.loss / one.tokens, of_base.get(one.sample_id)) for one in own]
        found = HeldOutLosses(epochs.weights_digest(epochs.served_adapter(model.run)), tuple(losses))
        with contextlib.suppress(FasttuneError), condition_as_error(), store.exclusive(model.run, seconds=0):
            before = documents.read_scores(model.run) if model.run.scores.is_file() else Scores(())
            documents.write(model.run.scores, replace(before, held_out=found))


# What it comes to ---------------------------------------------------------------------------------------------------


def answered(questions: Sequence[str], seen: Mapping[str, Seen]) -> tuple[Answered, ...]:
    """Each question with the answers of all models."""
    return tuple(
        Answered(question, {name: tuple(texts[at] for texts in one.answers) for name, one in seen.items()})
        for at, question in enumerate(questions)
    )


def figures(seen: Seen, samples: HeldOut) -> Figures:
    """The figures of one model."""
    greedy = [*seen.answers[0], *seen.held_out]
    tokens = sum(score.tokens for score in seen.scores)
    loss = sum(score.loss for score in seen.scores) / tokens if tokens else None
    kept, total = seen.facts or (None, None)
    return Figures(
        loss=loss,
        accuracy=sum(score.hits for score in seen.scores) / tokens if tokens else None,
        perplexity=math.exp(min(loss, 700.0)) if loss is not None else None,
        chrf=chrf.corpus_chrf(seen.held_out, samples.references) if seen.held_out else None,
        length=text_figures.mean([len(text) for text in greedy]),
        repetition=text_figures.mean([text_figures.repetition(text) for text in greedy]),
        distinct_openings=text_figures.distinct_openings(greedy),
        facts_kept=kept,
        facts=total,
        general=seen.general,
    )


def most_different(samples: HeldOut, seen: Mapping[str, Seen]) -> tuple[str, tuple[Difference, ...]]:
    """The held-out samples on which the models differ most: by the loss a token where both have one, else by chrF."""
    by_loss = all(one.scores for one in seen.values())
    found = []
    for at, (prompt, reference) in enumerate(zip(samples.prompts, samples.references, strict=True)):
        answers = {name: one.held_out[at] for name, one in seen.items()}
        if by_loss:
            values = {name: one.scores[at].loss / one.scores[at].tokens for name, one in seen.items()}
        else:
            values = {name: chrf.sentence_chrf(text, reference) for name, text in answers.items()}
        found.append(Difference(samples.samples[at].id, prompt.question, reference, values, answers))
    found.sort(key=lambda one: max(one.values.values()) - min(one.values.values()), reverse=True)
    return ("loss" if by_loss else "chrf") if found else "", tuple(found[:MOST_DIFFERENT])
