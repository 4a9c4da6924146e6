"""What `fasttune run` refuses about a base and its samples, found by `fasttune plan`: no torch, no network, no writing.

Where the base is on this disk, every sample is tokenized as training does it; else its length is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fasttune.console import Finding, _
from fasttune.data import token_cache
from fasttune.data.plain_tokenizer import PlainTokenizer, prompt_lengths
from fasttune.data.tokenize import tokenize_samples
from fasttune.planning.data_advice import probably_too_long
from fasttune.planning.init import context
from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import Recipe
from fasttune.training import hub

TEMPLATE_BYTES = 1_000  # of what a chat template writes around a question, its own system prompt included


def base_and_samples(plan: Plan) -> Sequence[Finding]:
    """What training will say about the samples once they are tokenized, such as the chat template's own system prompt.

    Raises FasttuneError with every finding for a base that is missing or incomplete and for samples that can't be
    trained on. A tokenizer that only transformers can read is left to `fasttune run`.
    """
    recipe = plan.recipe
    samples = (*plan.dataset.trained, *plan.dataset.held_out)
    base = hub.find_offline(recipe.model)
    if base is None:
        limit = recipe.model.max_seq_length
        return probably_too_long(samples, limit, _("raise model.max_seq_length or split the sample"))
    try:
        tokenizer = PlainTokenizer(base)
    except (OSError, ValueError):
        return []
    if not isinstance(tokenizer.chat_template, str):  # several by name, or in a file that transformers alone knows
        return []
    return tokenize_samples(samples, tokenizer, recipe.data, recipe.model.max_seq_length, token_cache.Cache()).findings


def length_beyond_base(recipe: Recipe, base: Path | None) -> list[Finding]:
    """The error for a max_seq_length beyond the base's own context length; `base` is its local folder, None where it is
    not on this machine.

    Unsloth would scale RoPE linearly on a GPU, without a word: the adapter would be trained on other hidden states than
    the served model has.
    """
    limit = context(str(base)) if base else recipe.model.max_seq_length
    if recipe.model.max_seq_length <= limit:
        return []
    what = _("{length} tokens are more than the base's {limit}", length=recipe.model.max_seq_length, limit=limit)
    why = _("beyond it the base's positions (RoPE) would be stretched: what is trained would not be what is served")
    fix = _("write max_seq_length = {limit}, and split samples that are longer", limit=limit)
    where = f"{recipe.path}: model.max_seq_length"
    return [Finding("length-beyond-base", "error", where, what, why, fix)]


def questions_beyond_length(plan: Plan, base: Path | None) -> list[Finding]:
    """An error for each probe question that is longer than a sample may be: it would be asked after the training, and
    end it. `base` is its local folder, None where it is not on this machine."""
    limit, around = plan.recipe.model.max_seq_length, len((plan.served_system or "").encode()) + TEMPLATE_BYTES
    # No token is shorter than a byte: the tokenizer is loaded for long questions alone.
    long = [one for one in plan.recipe.probe.questions if len(one.encode()) + around > limit]
    counts = prompt_lengths(base, long, plan.served_system) if base and long else []
    where, fix = f"{plan.recipe.path}: probe.questions", _("shorten it, or raise model.max_seq_length")
    return [
        Finding(
            "question-too-long", "error", where,
            _("'{text}…' has {tokens} tokens, but max_seq_length is {limit}", text=one[:20], tokens=count, limit=limit),
            fix=fix,
        )
        for one, count in zip(long, counts, strict=False) if count > limit
    ]  # fmt: skip
