"""The parts of a page about one run below its curves, in their order, as report.html.jinja lays them out.

Every function returns one part, or None where the run has nothing of it. Texts are plain; the page escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fasttune.analysis import page_files, words
from fasttune.analysis.chart_scales import number
from fasttune.analysis.charts import Chart, Series
from fasttune.analysis.page_blocks import NONE, Exchange, Part, Row, Table, figure
from fasttune.analysis.run_report import AnsweredEpoch, RunReport, is_repeating
from fasttune.command import command_line, runs_option
from fasttune.console import _
from fasttune.runs.outcomes import FactResult

MOST_EXCHANGES, MOST_ROWS = 24, 60
SAME_LOSS = 0.01  # nats: a check batch that differs by less was continued; resume_check.py refuses what is further off


def parts_of(report: RunReport) -> list[Part]:
    """The parts below the curves, in the order of the page."""
    every: Sequence[Callable[[RunReport], Part | None]] = (by_epoch, seams, kept_epochs, before_and_after, facts, worst)
    every = (*every, page_files.data, page_files.lineage, page_files.exported, page_files.versions)
    found = [part for make in every if (part := make(report)) is not None]
    return [limited(part) for part in found]


def limited(part: Part) -> Part:
    """The part with at most so many rows and answers, and a remark on how many there are."""
    table, exchanges, notes = part.table, part.exchanges, [part.note] * bool(part.note)
    if table is not None and len(table.rows) > MOST_ROWS:
        notes += rows_note(len(table.rows))
        table = replace(table, rows=table.rows[:MOST_ROWS])
    if len(exchanges) > MOST_EXCHANGES:
        notes.append(_("{n} of {total} questions are shown", n=MOST_EXCHANGES, total=len(exchanges)))
        exchanges = exchanges[:MOST_EXCHANGES]
    return replace(part, table=table, exchanges=exchanges, note="; ".join(notes))


def rows_note(total: int) -> list[str]:
    """The remark on a table that does not show all of its rows; none where it does."""
    return [_("{n} of {total} rows are shown", n=MOST_ROWS, total=total)] if total > MOST_ROWS else []


# Training -----------------------------------------------------------------------------------------------------------


def by_epoch(report: RunReport) -> Part | None:
    """The curves in figures, epoch by epoch."""
    rows = report.epoch_rows
    if not rows:
        return None
    headings = (_("epoch"), _("step"), _("training loss"), _("held-out loss"), _("token accuracy"), _("tokens/s"))
    losses = [row.eval_loss for row in rows if row.eval_loss is not None]
    best = min(losses, default=None)
    cells = tuple(
        Row(
            (
                f"{row.epoch:g}",
                str(row.step),
                figure(row.loss),
                figure(row.eval_loss),
                figure(row.accuracy, ".1%"),
                figure(row.tokens_per_second, ",.0f"),
            ),
            here=best is not None and len(losses) > 1 and row.eval_loss == best,
        )
        for row in rows[:MOST_ROWS]
    )
    notes = [_("set off: the lowest held-out loss")] * any(row.here for row in cells) + rows_note(len(rows))
    return Part("epochs-in-figures", _("Epoch by epoch"), table=Table(headings, cells), note="; ".join(notes))


def seams(report: RunReport) -> Part | None:
    """Where the training was taken up again, with the proof that it continued."""
    if not report.seams:
        return None
    headings = (_("run"), _("step"), _("check batch when saved"), _("check batch now"), _("learning rate"), _("proof"))
    rows = []
    for one in report.seams:
        rate = NONE
        if one.learning_rate is not None and one.learning_rate_before is not None:
            rate = f"{number(one.learning_rate_before)} → {number(one.learning_rate)}"
        rows.append(
            Row(
                (
                    one.run,
                    NONE if one.step is None else str(one.step),
                    figure(one.loss_when_saved, ".4f"),
                    figure(one.loss, ".4f"),
                    rate,
                    proof(one.difference),
                )
            )
        )
    text = _(
        "The same samples were scored when the checkpoint was saved and before training continued from it: equal "
        "losses show that it continued where it was, and did not begin again"
    )
    return Part("seams", _("Continued from"), text, Table(headings, tuple(rows)))


def proof(difference: float | None) -> str:
    """What the two losses of a check batch say."""
    if difference is None:
        return _("not comparable: other data, or a schedule of its own")
    if difference == 0:
        return "✓ " + _("continued: the same loss")
    if difference <= SAME_LOSS:
        return "✓ " + _("continued: they differ by {difference:.2g}", difference=difference)
    return "✗ " + _("they differ by {difference:.2g}", difference=difference)


def kept_epochs(report: RunReport) -> Part | None:
    """The kept epochs with their answers beside the held-out curve: when she becomes herself, when she babbles."""
    kept = report.kept
    if not kept:
        return None
    curve = curve_of_epochs(kept)
    return Part(
        "epochs",
        _("Every epoch, and what it answers"),
        table=table_of_epochs(kept),
        charts=(curve,) if len(curve.series[0].points) > 1 else (),
        exchanges=answers_of_epochs(kept, {probe.question: probe.base for probe in report.probes}),
        note=_("to serve the adapter of an epoch in place of the last one:"),
        commands=tuple(one.pick for one in kept if not one.is_served),
    )


def table_of_epochs(kept: Sequence[AnsweredEpoch]) -> Table:
    """An epoch a row: its held-out loss and what its answers are like; the best one is marked."""
    headings = (
        _("epoch"),
        _("held-out loss"),
        _("answers as the base"),
        _("out of character"),
        _("repeating itself"),
        "",
    )
    rows = (
        (
            one.epoch,
            figure(one.eval_loss),
            f"{one.as_base}/{len(one.answers)}",
            f"{one.out_of_character}/{len(one.answers)}",
            f"{one.repeating}/{len(one.answers)}",
            standing(one.is_best, one.is_served),
        )
        for one in kept
    )
    return Table(headings, tuple(Row(row, here=one.is_best) for row, one in zip(rows, kept, strict=True)))


def answers_of_epochs(kept: Sequence[AnsweredEpoch], base: Mapping[str, str]) -> tuple[Exchange, ...]:
    """A question with the base's answer, where it was asked, and that of each epoch."""
    found = []
    for question in dict.fromkeys(question for one in kept for question in one.answers):
        before = [(_("base"), base[question], ())] if base.get(question) else []
        after = [(_("epoch {epoch}", epoch=one.epoch), one.answers[question], remarks(one.answers[question]))
                 for one in kept if question in one.answers]  # fmt: skip
        found.append(Exchange(question, (*before, *after)))
    return tuple(found)


def curve_of_epochs(kept: Sequence[AnsweredEpoch]) -> Chart:
    """The held-out loss of the kept epochs, the best one named."""
    points = tuple((float(one.epoch), one.eval_loss) for one in kept if one.eval_loss is not None)
    best = tuple((float(one.epoch), _("best")) for one in kept if one.is_best)
    series = Series(_("held-out"), points, marked=True, style=1)
    return Chart("kept-epochs", _("Held-out loss of the kept epochs"), _("epoch"), (series,), best)


def standing(is_best: bool, is_served: bool) -> str:
    """What is particular about a kept epoch; mostly nothing."""
    said = [_("lowest held-out loss")] * is_best + [_("served")] * is_served
    return ", ".join(said)


def remarks(answer: str) -> tuple[str, ...]:
    """What is wrong with an answer by itself."""
    return (_("repeats itself"),) if is_repeating(answer) else ()


# Answers ------------------------------------------------------------------------------------------------------------


def before_and_after(report: RunReport) -> Part | None:
    """The probe questions with the answers of the base and of the trained model."""
    if not report.probes:
        return None
    by_file = (report.answered_by or "").endswith(".gguf")
    trained = _("trained, {file}", file=report.answered_by) if by_file else _("trained")
    exchanges = tuple(
        Exchange(
            one.question,
            ((_("base"), one.base, ()), *([(trained, one.trained, remarks(one.trained))] if one.trained else [])),
        )
        for one in report.probes
    )
    note = "" if any(one.trained for one in report.probes) else _("the trained model was not asked yet")
    return Part("answers", _("Before and after"), exchanges=exchanges, note=note)


def facts(report: RunReport) -> Part | None:
    """Which facts of the sheet each arm knows."""
    if report.facts is None:
        return None
    arms = tuple(report.facts.arms)
    headings = (_("fact"), *(words.arm_heading(arm) for arm in arms))
    rows = [Row((one.text, *(fact_cell(one, arm) for arm in arms))) for one in report.facts.facts]
    rows += [
        Row((_("never: {rule}", rule=one.text), *(broken(one.broken.get(arm)) for arm in arms)))
        for one in report.facts.rules
    ]
    kept = (_("kept in all"), *(f"{one.kept}/{len(report.facts.facts)}" for one in report.facts.arms.values()))
    return Part("facts", _("Facts"), report.facts.sheet, Table(headings, (Row(kept, here=True), *rows), numbers=False))


def fact_cell(fact: FactResult, arm: str) -> str:
    """What became of a fact, with a sign for those who don't see colours; a dash for an arm that a damaged document
    says nothing of."""
    state = fact.states.get(arm)
    if state is None:
        return NONE
    sign = {"kept": "✓", "lost": "·", "contradicted": "✗"}[state]
    return f"{sign} {words.fact_state_word(state)}"


def broken(answers: Sequence[str] | None) -> str:
    """How often a rule was broken, by the answers that did; a dash where that is not known."""
    if answers is None:
        return NONE
    return f"✗ {len(answers)}×" if answers else "✓"


def worst(report: RunReport) -> Part | None:
    """The held-out samples with the highest losses, by file and line."""
    if not report.worst:
        if report.figures is None or not report.figures.held_out_samples or report.run.status != "finished":
            return None
        command = command_line(["compare", report.id, *runs_option(report.run.root)])
        return Part(
            "worst",
            _("Worst samples"),
            _("The losses of single held-out samples are known after:"),
            commands=(command,),
        )
    headings = (_("sample"), _("loss"), _("base"), _("question"), _("answer"))
    rows = tuple(
        Row(
            (
                one.sample,
                figure(one.loss, ".2f"),
                figure(one.base_loss, ".2f"),
                one.question or NONE,
                one.answer or NONE,
            )
        )
        for one in report.worst
    )
    text = _(
        "The held-out samples that the trained model expects least, in nats a supervised token: look for mistakes "
        "in them first"
    )
    return Part("worst", _("Worst samples"), text, Table(headings, rows))
