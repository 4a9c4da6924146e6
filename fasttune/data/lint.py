"""All that can be found in samples before training, rule by rule; each finding names its sample as file:line.

lint_text     damage to a text          lint_script   scripts and widths        lint_pairs   two samples together
lint_answers  empty, cut off, alike     lint_persona  names, system prompts     topics       what is hardly asked
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fasttune.console import Finding, ngettext
from fasttune.data import lint_answers, lint_pairs, lint_persona, lint_script, lint_text, topics
from fasttune.data.dataset import Sample
from fasttune.data.messages import listed
from fasttune.data.side_by_side import can_fork, side_by_side

FORKED_FROM = 5_000  # samples whose comparison with each other is worth a process of its own
QUICK_SAMPLES = 2_000  # that the quick part of a plan looks at; of more an even choice


def lint(train: Sequence[Sample], held_out: Sequence[Sample], default_system: str) -> list[Finding]:
    """All findings about training samples and held-out ones; `default_system` is what the chat template writes where
    a sample has no system prompt."""
    different, found = lint_pairs.duplicates(train)
    kept, leaked = lint_pairs.leaks(different, held_out)

    def compared() -> list[Finding]:
        return by_pairs(different, kept)

    def one_by_one() -> list[Finding]:
        return [*by_sample(different, default_system), *topics.thin(different)]

    if len(different) >= FORKED_FROM and can_fork():
        pairs, single = side_by_side(compared, one_by_one)
    else:
        pairs, single = compared(), one_by_one()
    return [*found, *leaked, *pairs, *single]


def by_pairs(train: Sequence[Sample], held_out: Sequence[Sample]) -> list[Finding]:
    """The findings about two samples each, of samples whose conversations are all different."""
    near, pairs = lint_pairs.near_duplicates(train, held_out)
    rest = [sample for sample in held_out if sample.id not in near]
    close = {finding.where for finding in pairs}
    return [*pairs, *lint_pairs.shared_turns(train, rest), *lint_pairs.contradictions(train, close)]


def by_sample(samples: Sequence[Sample], default_system: str) -> list[Finding]:
    """The findings that need no comparison of all samples with each other."""
    persona = lint_persona.persona_of(samples)
    answers = [answer for sample in samples for answer in lint_answers.answers_of(sample)]
    texts = [finding for sample in samples for finding in lint_text.findings(sample)]
    damaged = {finding.where for finding in texts if finding.code == "encoding-damage"}
    whole = [sample for sample in samples if sample.id not in damaged]  # garbled text breaks every other rule too
    return [
        *texts,
        *lint_answers.findings([answer for answer in answers if answer.sample_id not in damaged]),
        *lint_persona.findings(whole, persona),
        *lint_persona.system_prompts(samples, persona, default_system),
        *lint_script.findings(whole),
    ]


def quick(samples: Sequence[Sample]) -> list[Finding]:
    """The warnings about samples that take no time, one for each code with the samples it stands for: for a plan.

    Those that loading the data set gives are left out.
    """
    chosen = samples[:: max(1, len(samples) // QUICK_SAMPLES)]
    known = ("many-system-prompts", "placeholder", "template-default-system", "control-text")
    by_code: dict[str, list[Finding]] = {}
    for finding in by_sample(chosen, ""):
        if finding.level == "warning" and finding.code not in known:
            by_code.setdefault(finding.code, []).append(finding)
    return [summary(same) for same in by_code.values()]


def summary(same: Sequence[Finding]) -> Finding:
    """One finding for several of one code: the first, with the number and the samples of all."""
    if len(same) == 1:
        return same[0]
    more = ngettext("{what} (and {n} more sample: {ids})", "{what} (and {n} more samples: {ids})", len(same) - 1,
                    what=same[0].what, ids=listed([finding.where for finding in same[1:]]))  # fmt: skip
    return replace(same[0], what=more)
