"""What a run came to when it was asked, as documents hold it: the facts of a sheet, in scores.json."""

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
    prompt there are only the first and the third. `sha256` is that of the sheet."""

    sheet: str
    sha256: str
    max_new_tokens: int
    arms: Mapping[str, ArmFacts]
    facts: tuple[FactResult, ...]
    rules: tuple[RuleResult, ...]
