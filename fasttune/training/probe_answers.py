"""The answers to a run's probe questions right after training: the base's, and the adapter's where no file is exported.

The base's are those of the model with its adapter disabled. They follow from the base, the prompt and the length alone,
so they are kept (answer_store.py) and asked once for all trainings of a base on one machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from fasttune.console import _
from fasttune.data.tokenize import prompt_tokens
from fasttune.machine import package_versions
from fasttune.planning.strategy import Plan
from fasttune.runs import documents, epochs
from fasttune.runs.documents import Probe, Scores
from fasttune.training import answer_store, device
from fasttune.training import model as models
from fasttune.training.trainer import StepTrainer

Show = Callable[[str], None]  # gets a line for each answer that the model is asked for


def record(trainer: StepTrainer, tokenizer: Any, show: Show) -> None:
    """Write the answers that there are after training into scores.json. Those of a GGUF file come later, from
    analysis/probe.py."""
    recipe = trainer.plan.recipe
    prompts = [prompt_tokens(question, trainer.plan.served_system, tokenizer) for question in recipe.probe.questions]
    with trainer.model.disable_adapter():
        by_base = base_answers(trainer, tokenizer, prompts, show)
    by_adapter = [""] * len(prompts)
    if not recipe.export.gguf:
        by_adapter = kept_answers(trainer) or ask(trainer, tokenizer, prompts, show)
    longest, trained = recipe.probe.max_new_tokens, training_questions(trainer.plan)
    probes = tuple(
        Probe(question, base, own, is_cut(base, tokenizer, longest), is_cut(own, tokenizer, longest),
              question.strip() in trained)
        for question, base, own in zip(recipe.probe.questions, by_base, by_adapter, strict=True)
    )  # fmt: skip
    kept = epochs.epoch_scores(trainer.run)
    documents.write(trainer.run.scores, Scores(probes, documents.NOT_ASKED, epochs=kept))


def is_cut(answer: str, tokenizer: Any, max_new_tokens: int) -> bool:
    """Whether an answer is as long as it may be: the model was stopped, and did not end it. A token less counts too,
    since the answer is kept without the blanks at its ends."""
    return len(tokenizer(answer, add_special_tokens=False)["input_ids"]) >= max(1, max_new_tokens - 1)


def training_questions(plan: Plan) -> frozenset[str]:
    """What the users of the training samples say, word for word."""
    messages = (message for sample in plan.dataset.train for message in sample.messages)
    return frozenset(message.content.strip() for message in messages if message.role == "user")


def kept_answers(trainer: StepTrainer) -> list[str]:
    """The answers that the adapter gave when its last epoch was kept; none where that was not the last step, or other
    questions."""
    probe = trainer.plan.recipe.probe
    for one in epochs.epoch_scores(trainer.run):
        same = (one.questions, one.max_new_tokens) == (probe.questions, probe.max_new_tokens)
        if one.step == trainer.state.global_step and same:
            return list(one.answers)
    return []


def base_answers(trainer: StepTrainer, tokenizer: Any, prompts: Sequence[tuple[int, ...]], show: Show) -> list[str]:
    """The base's answers to prompts of token ids; those that are not kept yet are asked for, and kept."""
    names = [name_of(trainer, prompt) for prompt in prompts]
    kept = answer_store.read(names)
    missing = {name: prompt for name, prompt in zip(names, prompts, strict=True) if name not in kept}
    new = dict(zip(missing, ask(trainer, tokenizer, list(missing.values()), show), strict=True))
    if new:
        answer_store.write(new)
    return [(kept | new)[name] for name in names]


def name_of(trainer: StepTrainer, prompt: Sequence[int]) -> bytes:
    """The sha256 of all that decides the base's greedy answer to a prompt: weights, number type, device, packages."""
    recipe, base = trainer.plan.recipe, documents.read_provenance(trainer.run).base
    figures = [str(device.compute_dtype(recipe.model)), recipe.model.load_in_4bit, device.device_type()]
    decides = ["probe", base.fingerprint, *figures, package_versions(), recipe.probe.max_new_tokens, list(prompt)]
    return hashlib.sha256(json.dumps(decides).encode()).digest()


def ask(trainer: StepTrainer, tokenizer: Any, prompts: Sequence[Sequence[int]], show: Show) -> list[str]:
    """The model's greedy answers to prompts of token ids."""
    answers = []
    for number, prompt in enumerate(prompts, 1):
        show(_("answering the probe questions: {number} of {n}", number=number, n=len(prompts)))
        answers.append(models.generate(trainer.model, tokenizer, prompt, trainer.plan.recipe.probe.max_new_tokens))
    return answers
