"""What a training with `data.replay` has forgotten of what its base could do: the loss of the general conversations
that nobody trains on, by the base and by the trained model. `fasttune compare` computes the same of any two models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fasttune.data.dataset import general_samples
from fasttune.data.general import LANGUAGES
from fasttune.data.tokenize import ANY_LENGTH, tokenize_samples
from fasttune.recipe.schema import DataRecipe
from fasttune.runs import documents
from fasttune.runs.outcomes import GeneralLoss
from fasttune.training import generation
from fasttune.training.kept_epochs import modes_kept
from fasttune.training.trainer import StepTrainer


def record(trainer: StepTrainer, tokenizer: Any) -> None:
    """Write the losses into scores.json, which is there; nothing for a run without general conversations."""
    if not trainer.plan.dataset.general:
        return
    with modes_kept(trainer.model):
        trainer.model.eval()
        trained = losses(trainer, tokenizer)
        with trainer.model.disable_adapter():
            base = losses(trainer, tokenizer)
    found = tuple(GeneralLoss(language, base[language], trained[language]) for language in LANGUAGES)
    documents.write(trainer.run.scores, replace(documents.read_scores(trainer.run), general=found))


def losses(trainer: StepTrainer, tokenizer: Any) -> dict[str, float]:
    """The loss of the model as it is now, in nats a supervised token, by language."""
    found = {}
    for language in LANGUAGES:
        samples = general_samples("val", (language,))
        examples = tokenize_samples(samples, tokenizer, DataRecipe(train=()), ANY_LENGTH).examples
        scores = list(generation.score_samples(trainer.model, examples, trainer.plan.recipe.model))
        found[language] = sum(one.loss for one in scores) / sum(one.tokens for one in scores)
    return found
