"""Which conversations a file is measured on, and which the importance matrix is taken from: the run's own.

Measured is on held-out conversations, where there are any, and the importance matrix is taken from training
conversations: a matrix that had seen the answers that it is judged by would flatter itself. Both choices are the same
each time: spread evenly over the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fasttune.console import FasttuneError
from fasttune.data.chat_template import ChatTemplate, Tokenizer
from fasttune.data.dataset import Sample, load_dataset
from fasttune.data.tokenize import Example, Learn, encode_all
from fasttune.export.kept import Passage
from fasttune.export.weights import Shape, expected_tensors
from fasttune.recipe.load import load_recipe
from fasttune.runs import documents
from fasttune.runs.outcomes import MeasuredOn
from fasttune.runs.store import Run
from fasttune.training.packing import common_prefix

MOST_CONVERSATIONS = 16
MOST_SUPERVISED = 4000
MOST_TOKENS = 4096  # computed for them; fewer of a large base, so that two CPU cores need a minute or two
FEWEST_TOKENS = 1024
TOKEN_WEIGHTS = 2e12  # tokens times weights of the layers


@dataclass(frozen=True)
class Conversations:
    """A run's own conversations: `measured` ones, which come from `origin`, and those for the importance matrix."""

    measured: tuple[Sample, ...]
    origin: MeasuredOn
    calibration: tuple[Sample, ...]
    learn: Learn = "assistant"
    problem: str = ""  # why there are none


NONE = Conversations((), "fixed", ())


def of_run(run: Run) -> Conversations:
    """The conversations of a run; none, with the reason, where its data can't be read any more."""
    try:
        recipe = load_recipe(run.recipe, documents.recorded_overrides(run))
        data = load_dataset(recipe.data, recipe.train.seed)
    except FasttuneError as problem:
        first = problem.findings[0]
        return Conversations((), "fixed", (), problem=f"{first.where}: {first.what}" if first.where else first.what)
    if data.held_out:
        return Conversations(data.held_out, "held-out", data.train, recipe.data.learn)
    return Conversations(data.train[::2], "training", data.train[1::2], recipe.data.learn)


def choose(samples: Sequence[Sample], tokenizer: Tokenizer, learn: Learn, shape: Shape) -> tuple[Passage, ...]:
    """Up to MOST_CONVERSATIONS of the samples as passages, within MOST_SUPERVISED and the tokens for a base of this
    shape; the last one is cut where it would exceed them. Samples that the chat template can't be used for are left
    out."""
    if not samples:
        return ()
    spread = samples[:: -(-len(samples) // MOST_CONVERSATIONS)]
    examples = [one for one in encode_all(spread, ChatTemplate(tokenizer), learn) if isinstance(one, Example)]
    found: list[Passage] = []
    room, supervised = tokens_for(shape), MOST_SUPERVISED
    for example in examples:
        shared = common_prefix(found[0].tokens, example.tokens) if found else 0
        passage = cut(example, min(shared + room, shape.context_length), supervised)
        if passage is not None:
            found.append(passage)
            room, supervised = room - (len(passage.tokens) - shared), supervised - len(passage.labels)
    return tuple(found)


def cut(example: Example, most_tokens: int, most_supervised: int) -> Passage | None:
    """The beginning of an example within these counts, up to its last supervised token; None where none is left."""
    inside = [at for start, end in example.supervised for at in range(start, end) if at < most_tokens]
    inside = inside[: max(0, most_supervised)]
    if not inside:
        return None
    return Passage(example.tokens[: inside[-1] + 1], spans_of(inside))


def spans_of(positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rising positions as half-open spans."""
    runs = [list(group) for _key, group in groupby(enumerate(positions), lambda pair: pair[1] - pair[0])]
    return tuple((run[0][1], run[-1][1] + 1) for run in runs)


def tokens_for(shape: Shape) -> int:
    """How many tokens are computed with a base of this shape."""
    weights = sum(math.prod(size) for name, size in expected_tensors(shape).items() if ".layers." in name)
    return int(min(MOST_TOKENS, max(FEWEST_TOKENS, TOKEN_WEIGHTS / weights)))
