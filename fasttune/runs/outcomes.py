"""What a run came to when it was asked, as documents hold it: the facts of a sheet and the answers after each epoch in
scores.json, what a person picked in blind comparisons in blind.json, and which epoch was picked in picked.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FactState = Literal["kept", "lost", "contradicted"]


@dataclass(frozen=True)
class FactResult:
    """A fact of a sheet: `source` is "system" or "data"; by arm its state, and the answer to each wording."""

    id: str
    text: str
    source: str
    questions: tuple[str, ...]
    states: Mapping[str, FactState]
    answers: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class RuleResult:
    """A "never" rule of a sheet: by arm the answers, of all that were asked, that hold a forbidden phrase."""

    id: str
    text: str
    broken: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ArmFacts:
    """How many facts one arm has kept, lost and contradicted, the share of all wordings that were answered right, and
    how many rules it broke."""

    kept: int
    lost: int
    contradicted: int
    right: float
    rules_broken: int


@dataclass(frozen=True)
class FactScores:
    """What `fasttune facts` found. The arms are "base", "base+system", "tuned" and "tuned+system"; without a system
    prompt there are only the first and the third. `sha256` is that of the sheet, `adapter` that of the weights
    that were asked ("": from before it was recorded)."""

    sheet: str
    sha256: str
    max_new_tokens: int
    arms: Mapping[str, ArmFacts]
    facts: tuple[FactResult, ...]
    rules: tuple[RuleResult, ...]
    adapter: str = ""


@dataclass(frozen=True)
class EpochScores:
    """What an epoch came to: `sha256` is that of its adapter's weights, `eval_loss` the held-out loss in nats a
    supervised token (None: not evaluated at this step), `answers` those to the probe questions `questions`, greedily,
    of at most `max_new_tokens` tokens."""

    step: int
    sha256: str
    eval_loss: float | None
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Pick:
    """One `fasttune pick`, `created` in UTC in ISO 8601: from then on the adapter after `to` epochs, of `step`, is
    served in place of that after `from_`. None stands for the run's own adapter."""

    created: str
    from_: float | None
    to: float | None
    step: int


@dataclass(frozen=True)
class Picks:
    """picked.json: every pick of a run, oldest first. The last one holds."""

    picks: tuple[Pick, ...] = ()


@dataclass(frozen=True)
class BlindChoice:
    """A question that was shown with two answers: `order` are the models in the order in which they stood there,
    `answers` theirs by name, `seed` 0 for the greedy ones; `picked` is the model, None for "no difference"."""

    question: str
    seed: int
    order: tuple[str, ...]
    answers: Mapping[str, str]
    picked: str | None


@dataclass(frozen=True)
class BlindComparison:
    """One sitting, `created` in UTC in ISO 8601: how often each model was picked, and how often neither."""

    created: str
    picks: Mapping[str, int]
    no_difference: int
    choices: tuple[BlindChoice, ...]


@dataclass(frozen=True)
class BlindComparisons:
    """blind.json: every blind comparison that named this run, oldest first."""

    comparisons: tuple[BlindComparison, ...] = ()
