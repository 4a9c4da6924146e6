"""What a page says of the data of a run: lengths, tokens, what shared prefixes save, and the held-out samples that the
trained model is worst at. The data is read as it is now; where it has changed since, that is said."""

from __future__ import annotations

from dataclasses import dataclass

from fasttune.analysis import check
from fasttune.analysis.check import Figures, Source
from fasttune.console import FasttuneError
from fasttune.data.chat_template import ChatTemplate
from fasttune.data.dataset import Dataset, Sample, load_dataset
from fasttune.data.plain_tokenizer import PlainTokenizer
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import ModelRecipe, Recipe
from fasttune.runs import documents, epochs
from fasttune.runs.store import Run
from fasttune.training import hub

MOST_TOKENIZED = 2_000  # samples whose tokens are counted exactly: a page is written at the end of each training
MOST_WORST = 12


@dataclass(frozen=True)
class DataPicture:
    """The figures of the samples, and whether they are those that the run was trained on."""

    figures: Figures
    is_changed: bool


@dataclass(frozen=True)
class WorstSample:
    """A held-out sample with the trained model's loss and the base's, in nats a supervised token; `question` and
    `answer` are "" where the data can't be read any more."""

    sample: str
    loss: float
    base_loss: float | None
    question: str
    answer: str


def run_recipe(run: Run) -> Recipe:
    """The recipe of a run as it was resolved. Raises FasttuneError where the run's documents can't be read."""
    return load_recipe(run.recipe, documents.recorded_overrides(run))


def read_data(run: Run) -> Dataset | None:
    """The data of a run as it is now; None where it can't be read any more, which its diagnosis says."""
    try:
        recipe = run_recipe(run)
        return load_dataset(recipe.data, recipe.train.seed)
    except FasttuneError:
        return None


def training_answers(dataset: Dataset | None) -> list[str]:
    """The answers that were trained on; none where the data can't be read."""
    samples = dataset.train if dataset else ()
    return [message.content for sample in samples for message in sample.messages if message.role == "assistant"]


def picture(run: Run, dataset: Dataset | None, *, counts_tokens: bool) -> DataPicture | None:
    """The figures of a run's data; None without the data. With `counts_tokens` they are those of the base's own
    tokenizer, where it is on this disk."""
    if dataset is None:
        return None
    recipe = run_recipe(run)
    source = Source(dataset.train, dataset.held_out, (), recipe, dataset.general)
    found = check.measure(source, template_of(recipe.model) if counts_tokens else None, MOST_TOKENIZED)
    changed = dataset.fingerprint != documents.read_plan(run).data_fingerprint
    return DataPicture(found, changed)


def template_of(recipe: ModelRecipe) -> ChatTemplate | None:
    """The base's chat template and tokenizer without transformers, which takes seconds to import; None where they are
    not on this disk, or can't be used."""
    try:
        folder = hub.local_tokenizer(recipe)
        return ChatTemplate(PlainTokenizer(folder)) if folder else None
    except (OSError, ValueError, FasttuneError):
        return None


def worst_samples(run: Run, dataset: Dataset | None) -> tuple[WorstSample, ...]:
    """The held-out samples with the highest losses, as `fasttune compare` has computed them for the adapter that the
    run serves; none where it has not."""
    known = documents.read_scores(run).held_out if run.scores.is_file() else None
    if known is None or known.adapter != epochs.weights_digest(epochs.served_adapter(run)):
        return ()
    samples = {sample.id: sample for sample in dataset.held_out} if dataset else {}
    ranked = sorted(known.samples, key=lambda one: -one.loss)[:MOST_WORST]
    return tuple(WorstSample(one.sample, one.loss, one.base_loss, *exchange(samples.get(one.sample))) for one in ranked)


def exchange(sample: Sample | None) -> tuple[str, str]:
    """The last question of a conversation and the answer to it; "" for a sample that is not there."""
    if sample is None:
        return "", ""
    said = [message.content for message in sample.messages if message.role != "system"]
    return (said[-2], said[-1]) if len(said) > 1 else ("", said[-1])
