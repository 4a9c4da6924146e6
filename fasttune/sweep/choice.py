"""Which trial of a sweep is chosen, and what is worth saying of the choice. Held-out loss alone decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fasttune.console import Finding, _
from fasttune.recipe.toml_file import toml_value
from fasttune.runs import epochs
from fasttune.runs.judgement import RISE
from fasttune.sweep.study import Outcome, TrialRecord
from fasttune.sweep.vary import Range, Variation

MOST_SHOWN = 2  # trials whose answers and facts are shown beside each other


def ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The finished trials, the lowest held-out loss first, of equal ones the earlier one; each run once."""
    finished = [one for one in trials if one.state == "finished" and one.loss is not None and math.isfinite(one.loss)]
    first: dict[tuple[str, str], TrialRecord] = {}
    for one in sorted(finished, key=lambda each: (each.loss, each.number)):
        first.setdefault((one.host, one.run), one)
    return list(first.values())


def best(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The chosen trial; None where none is finished."""
    return next(iter(ranked(trials)), None)


def finalists(trials: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The chosen trial and the next best, which are shown side by side."""
    return tuple(ranked(trials)[:MOST_SHOWN])


def as_good(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The other trials whose loss is above that of the chosen one by no more than what separates two runs."""
    found = ranked(trials)
    return [one for one in found[1:] if (one.loss or 0.0) <= RISE * (found[0].loss or 0.0)]


def findings(trials: Sequence[TrialRecord], variations: Sequence[Variation]) -> list[Finding]:
    """What is worth saying of the choice: trials that are as good, and a best value that lies at an end of those that
    were tried."""
    chosen = best(trials)
    if chosen is None:
        what = _("no trial was finished, and there is nothing to choose from")
        return [Finding("no-trial-finished", "error", "", what)]
    found = []
    if others := as_good(trials):
        numbers = ", ".join(str(one.number) for one in others)
        what = _("as good as trial {best}, within 1 %: {numbers}", best=chosen.number, numbers=numbers)
        why = _("so small a difference may be chance; take the one whose answers you like, or the cheapest")
        found.append(Finding("as-good", "info", chosen.run, what, why))
    return found + [note for one in variations for note in at_the_end(trials, chosen, one)]


def at_the_end(trials: Sequence[TrialRecord], chosen: TrialRecord, variation: Variation) -> list[Finding]:
    """The note that the best value of a number is the lowest or the highest that was tried."""
    tried = sorted({number for one in trials if (number := number_of(one, variation.key)) is not None})
    value = number_of(chosen, variation.key)
    if value is None or len(tried) < 2 or value not in (tried[0], tried[-1]):
        return []
    if isinstance(variation, Range) and value not in (variation.low, variation.high):
        return []
    what = _("the best {key} is the lowest that was tried", key=variation.key)
    if value == tried[-1]:
        what = _("the best {key} is the highest that was tried", key=variation.key)
    fix = _("try values beyond it, too: `--vary {key}=…`", key=variation.key)
    return [Finding("best-at-the-end", "info", chosen.run, what, fix=fix)]


def number_of(trial: TrialRecord, key: str) -> float | None:
    """The value of a setting in a trial where it is a number."""
    value = toml_value(str(trial.settings.get(key, "")))
    return float(value) if type(value) in (int, float) else None


def in_words(outcome: Outcome) -> str:
    """What a trial came to, for the line that says so."""
    if outcome.why:
        return _("failed: {why}", why=outcome.why)
    if outcome.loss is None or outcome.epoch is None:
        return _("stopped, as its held-out loss is behind that of most others; its run stays as it is")
    epoch = epochs.epoch_word(outcome.epoch)
    return _("held-out loss {loss:.3f} after epoch {epoch}", loss=outcome.loss, epoch=epoch)
