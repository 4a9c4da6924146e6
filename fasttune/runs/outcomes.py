"""What a run came to when it was asked or measured, as documents hold it: the facts of a sheet, the answers after each
epoch, the losses of single samples and the figures of the exported files in scores.json, what a person picked in blind
comparisons in blind.json, and which epoch was picked in picked.json. And the answers that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FactState = Literal["kept", "lost", "contradicted"]
MeasuredOn = Literal["held-out", "training", "fixed"]
Judgement = Literal["keeps", "loses-much", "loses-training", "not-judged"]


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
    prompt there are only the first and the third, and with export.prompt = "facts" there is "tuned+facts". `sha256` is
    that of the sheet, `adapter` that of the weights that were asked ("": from before it was recorded)."""

    sheet: str
    sha256: str
    max_new_tokens: int
    arms: Mapping[str, ArmFacts]
    facts: tuple[FactResult, ...]
    rules: tuple[RuleResult, ...]
    adapter: str = ""


@dataclass(frozen=True)
class Answered:
    """A question with the answers of each model, by its name: the greedy one, then one a seed."""

    question: str
    answers: Mapping[str, tuple[str, ...]]


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
class SampleLoss:
    """A held-out sample, as `file:line`, with the trained model's loss and its base's, in nats a supervised token; the
    base's is None where it was not asked."""

    sample: str
    loss: float
    base_loss: float | None = None


@dataclass(frozen=True)
class HeldOutLosses:
    """The losses of single held-out samples, as `fasttune compare` computed them for an adapter; `adapter` is the
    sha256 of its weights."""

    adapter: str
    samples: tuple[SampleLoss, ...]


@dataclass(frozen=True)
class GeneralLoss:
    """The loss of the general conversations of a language ("zh", "en") that nobody trains on, by the base and by the
    trained model, in nats a supervised token: what training with data.replay has forgotten."""

    language: str
    base: float
    trained: float


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


@dataclass(frozen=True)
class OllamaProof:
    """What a model in Ollama answered right after its import, beside the file by llama.cpp (export.proof).

    `prompt_tokens` is Ollama's `prompt_eval_count` (None: it told none), `trained_prompt_tokens` what training makes of
    the question. Of the first `tokens` tokens of the file's likeliest answer the server's begins with `same_tokens`.
    """

    model: str
    version: str
    question: str
    prompt_tokens: int | None
    trained_prompt_tokens: int
    answer: str
    file_answer: str
    tokens: int
    same_tokens: int
    passed: bool


@dataclass(frozen=True)
class ExportFigures:
    """What a GGUF file keeps of the run (export.kept): `kl` is KL(trained ‖ file) and `learned` KL(trained ‖ base), in
    nats a supervised token, `kept` 1 - kl / learned. `tokens` supervised tokens of `conversations` were measured, which
    are of `measured_on`: fixed texts where the run's own could not be read.

    `kept` is None where there is no adapter, or it changed too little to judge by. `tensor_types` says how many
    matrices the file has of each type, `base_bits` on the grid of how many bits the base lies (export.grid). `imatrix`:
    "none", "own", or the sha256 of the file it was read from. `picked`: the user left the choice of the type to `auto`.

    `bits_per_weight` is the size of all tensors by their number of weights (None: from before it was recorded), and
    `fallback_types` says in which types llama.cpp stored the matrices that the file's own type can't hold, as 256 does
    not divide their rows.
    After QLoRA `nf4_kl` is KL(adapter on NF4 ‖ adapter on 16 bits), what was trained against what is served, and
    `nf4_perplexity` the former's; None after another training.
    """

    file: str
    type: str
    bytes: int
    judgement: Judgement
    measured_on: MeasuredOn
    conversations: int
    tokens: int
    kl: float
    top1: float
    perplexity: float
    trained_perplexity: float
    base_perplexity: float | None
    learned: float | None
    kept: float | None
    tensor_types: Mapping[str, int]
    imatrix: str = "none"
    picked: bool = False
    base_bits: int | None = None
    bits_per_weight: float | None = None
    fallback_types: Mapping[str, int] = field(default_factory=dict)
    nf4_kl: float | None = None
    nf4_perplexity: float | None = None
