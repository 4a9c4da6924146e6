"""`fasttune compare --blind`: two answers without their names, the person picks; the names and the count at the end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone

from rich.markup import escape
from rich.table import Table

from fasttune.console import (
    COLON,
    _,
    can_ask,
    ngettext,
    print_json,
    put,
    say,
    stderr_console,
    stdout_console,
    usage_error,
)
from fasttune.runs import documents, store, typed_json
from fasttune.runs.outcomes import Answered, BlindChoice, BlindComparison, BlindComparisons
from fasttune.runs.store import Run

STOP = "stop"


def require_terminal() -> None:
    """Raises UsageError where nobody can be asked."""
    if not can_ask():
        what = _("a blind comparison asks a person, and this is no terminal")
        raise usage_error("no-terminal", what, where="--blind", fix=_("leave `--blind` out to see the answers"))


def compare_blind(questions: Sequence[Answered], run: Run | None, *, as_json: bool) -> int:
    """Let the person pick between both models' answers, keep the sitting in the run's folder and show what came of it.

    Where the person stops, also by Ctrl-C, what was picked before is kept; Ctrl-C then ends the command.
    """
    pairs = shuffled(questions)
    equal = sum(len(set(pair.answers.values())) == 1 for pair in pairs)
    pairs = [pair for pair in pairs if len(set(pair.answers.values())) > 1]
    if equal:
        say(
            ngettext(
                "{n} pair of answers is equal and is not shown",
                "{n} pairs of answers are equal and are not shown",
                equal,
            )
        )
    picked: list[BlindChoice] = []
    try:
        pick(pairs, picked)
    except KeyboardInterrupt:
        if run is not None and picked and store.keep(run, lambda: add(run, sitting(questions, picked))):
            say(_("kept in {file}", file=run.blind))
        raise
    found = sitting(questions, picked)
    is_kept = run is not None and bool(picked) and store.keep(run, lambda: add(run, found))
    show(found, run if is_kept else None, as_json=as_json)
    return 0


def pick(pairs: Sequence[BlindChoice], picked: list[BlindChoice]) -> None:
    """Show one pair after the other and add what the person picks to `picked`, until none is left or they stop."""
    from fasttune.terminal import prompts

    for number, pair in enumerate(pairs, 1):
        show_pair(pair, number, len(pairs))
        choices = {name: str(at) for at, name in enumerate(pair.order, 1)}
        choices |= {"": _("no difference"), STOP: _("stop here")}
        choice = prompts.choose(_("Which answer is better?"), choices)
        if choice == STOP:
            return
        picked.append(BlindChoice(pair.question, pair.seed, pair.order, pair.answers, choice or None))


def shuffled(questions: Sequence[Answered]) -> list[BlindChoice]:
    """Every pair of answers, in random order, with the models of each in random order; nothing is picked yet."""
    pairs = []
    for one in questions:
        names = list(one.answers)
        for seed in range(len(one.answers[names[0]])):
            order = tuple(random.sample(names, len(names)))
            pairs.append(
                BlindChoice(one.question, seed, order, {name: one.answers[name][seed] for name in names}, None)
            )
    random.shuffle(pairs)
    return pairs


def show_pair(pair: BlindChoice, number: int, total: int) -> None:
    """Print a question with both answers, numbered, on stderr, where the person is asked."""
    stderr_console.print(f"\n[dim]{number}/{total}[/]  [bold]{escape(pair.question)}[/]")
    for at, name in enumerate(pair.order, 1):
        stderr_console.print(f"  [bold]{at}[/]  {escape(pair.answers[name])}")


def sitting(questions: Sequence[Answered], picked: Sequence[BlindChoice]) -> BlindComparison:
    """What the picks come to."""
    counts = Counter(choice.picked for choice in picked)
    names = list(questions[0].answers)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return BlindComparison(created, {name: counts[name] for name in names}, counts[None], tuple(picked))


def keep(run: Run, found: BlindComparison) -> None:
    """Add a sitting to the run's blind.json. Raises FasttuneError where another process uses the run."""
    with store.exclusive(run):
        add(run, found)


def add(run: Run, found: BlindComparison) -> None:
    """Add a sitting to the run's blind.json; the caller holds the run's lock."""
    before = documents.read(run.blind, BlindComparisons) if run.blind.is_file() else BlindComparisons()
    documents.write(run.blind, BlindComparisons((*before.comparisons, found)))


def show(found: BlindComparison, run: Run | None, *, as_json: bool) -> None:
    """Print what was picked, with the names, and the count."""
    if as_json:
        print_json(typed_json.as_json(found))
        return
    table = Table(box=None, pad_edge=False)
    for heading in (_("question"), "1", "2", _("picked")):
        table.add_column(heading, overflow="fold")
    for choice in found.choices:
        table.add_row(escape(choice.question), *map(escape, choice.order), escape(choice.picked or _("no difference")))
    stdout_console.print(table)
    for name, count in found.picks.items():
        put(f"{name}{_(COLON)}{count}")
    put(f"{_('no difference')}{_(COLON)}{found.no_difference}")
    if run is not None and found.choices:
        say(_("kept in {file}", file=run.blind))
