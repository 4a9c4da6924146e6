"""How much arithmetic a training step needs at least, from the shapes of the base and the samples of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttune.bench.jobs import Measured
from fasttune.data.tokenize import Example
from fasttune.recipe.schema import LoraRecipe
from fasttune.training import packing
from fasttune.training.memory import read_size


@dataclass(frozen=True)
class UsefulWork:
    """What no engine can do without: tokens through the layers, supervised tokens through the head, attention pairs."""

    tokens: int
    supervised_tokens: int
    attention_pairs: int


def useful_work(measured: Measured, timed: slice) -> UsefulWork:
    """The useful work of the timed steps: padding is no use, and a token computed for several samples counts once."""
    return UsefulWork(
        tokens=min(sum(measured.tokens[timed]), sum(measured.computed_tokens[timed])),
        supervised_tokens=sum(measured.supervised_tokens[timed]),
        attention_pairs=sum(measured.attention_pairs[timed]),
    )


def useful_flops(base: Path, lora: LoraRecipe, work: UsefulWork) -> float:
    """Floating-point operations that training needs for this work.

    With W the frozen weights of all decoder layers, L the LoRA weights, H = hidden size * vocabulary the weights of the
    frozen head, and D the width of all heads of all layers:

        FLOPs = tokens * (4 W + 6 L) + supervised tokens * 4 H + attention pairs * 12 D

    A product is a multiplication and an addition (2) for each weight and token: forward, backward for the token's
    gradient (4 together), and for LoRA also for the weight's own (6). Attention has 2 products forward and 4 backward
    for each pair and dimension (12). Not counted, because nobody needs them: gradient checkpointing, padding and the
    gradient of a frozen weight; nor norms, softmax and rotary embeddings.
    """
    size = read_size(base)
    head, width = size.hidden * size.vocabulary, size.layers * size.linear_shapes["q_proj"][1]
    per_token = 4.0 * size.linear_weights + 6.0 * size.adapter_weights(lora)
    return work.tokens * per_token + work.supervised_tokens * 4.0 * head + work.attention_pairs * 12.0 * width


def layer_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer of a decoder layer, from the base's config.json."""
    return read_size(base).linear_shapes


def attention_pairs(examples: Sequence[Example], samples: Sequence[int], *, shared: bool) -> int:
    """Pairs of a token and one that it attends to, itself included, in a step's samples.

    With `shared`, the pairs of a shared prefix count once, as in fasttune's rows.
    """
    whole = sum(len(examples[i].tokens) for i in samples)
    (row,) = packing.plan_step(examples, samples, whole, shared_prefix=shared).rows
    return sum(group_pairs(group.prefix, [len(examples[i].tokens) for i in group.members]) for group in row.groups)


def group_pairs(prefix: int, lengths: Sequence[int]) -> int:
    """Causal pairs of a prefix group: p (p + 1) / 2 in the prefix of p tokens, and for each sample of n tokens, prefix
    included, (n (n + 1) - p (p + 1)) / 2 more."""
    return prefix * (prefix + 1) // 2 + sum((n * (n + 1) - prefix * (prefix + 1)) // 2 for n in lengths)
