"""The verbs that say what is wrong with data and runs, why a model is as it is, and what to do next."""

from __future__ import annotations

from pathlib import Path

import click

from fasttune.cli.options import LONGEST_ANSWER, FiniteRange, json_option, overrides_option, runs_option
from fasttune.console import _
from fasttune.terminal import command_line


@click.command(help=_("Find what is wrong with a data file, or with the data of a recipe, before training."))
@click.argument("path", metavar="FILE|RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--fix", "out", metavar="OUT", type=click.Path(path_type=Path),
    help=_("Write a copy in which everything is mended that can be mended safely; the original stays as it is."),
)  # fmt: skip
@overrides_option
@json_option
def check(path: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> int:
    from fasttune.analysis import check as checking
    from fasttune.terminal import check_report

    if out is not None:
        return check_report.show_mended(out, checking.mended_copy(path, out, overrides), as_json=as_json)
    return check_report.show(checking.check(path, overrides), as_json=as_json)


@click.command(help=_("Say what is wrong with a training, by which figures, and what to type next; loads no model."))
@click.argument("name", metavar="RUN|FOLDER", shell_complete=command_line.complete_run)
@click.option("--checklist", "with_checklist", is_flag=True, help=_("Answer the checklist before, during and after."))
@runs_option
@json_option
def diagnose(name: str, with_checklist: bool, root: Path, as_json: bool) -> int:
    from fasttune.terminal import diagnosis

    return diagnosis.show(root, name, as_json=as_json, with_checklist=with_checklist)


@click.command(help=_("Ask a run the questions of a fact sheet: what it keeps, has lost and contradicts."))
@click.argument("name", metavar="RUN", shell_complete=command_line.complete_run)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help=_("A fact sheet in place of the one that the recipe names."),
)
@click.option("--max-new-tokens", default=64, show_default=True, type=LONGEST_ANSWER, help=_("Longest answer."))
@click.option(
    "--prompt", type=click.Choice(["facts"]),
    help=_("Ask with the facts in the system prompt too, as export.prompt = \"facts\" would serve it."),
)  # fmt: skip
@click.option(
    "--at-least",
    metavar="SHARE",
    type=FiniteRange(0, 1),
    help=_("End with exit code 1 where a smaller share of the facts is kept."),
)
@runs_option
@json_option
def facts(
    name: str,
    file: Path | None,
    max_new_tokens: int,
    prompt: str | None,
    at_least: float | None,
    root: Path,
    as_json: bool,
) -> int:
    from fasttune.analysis.facts import facts, findings
    from fasttune.runs import adapters, store
    from fasttune.terminal import fact_table

    other = adapters.named(name, root)
    run = other.run if other else store.find(root, name)
    scores = facts(run, file, max_new_tokens, other, prompt)
    return fact_table.show_facts(run, scores, findings(run, scores, at_least), as_json=as_json)


@click.command(
    help=_(
        "Compare two models: a run, RUN@STEP, RUN@epoch-2, `base`, a .gguf file, ollama:NAME; one alone with its base."
    )
)
@click.argument("names", metavar="A [B]", nargs=-1, required=True, shell_complete=command_line.complete_run)
@click.option("--questions", type=click.Path(path_type=Path), help=_("A file of questions, one a line."))
@click.option("--system", help=_("A system prompt in place of each model's own."))
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(0, 20),
    help=_("Answers by a seed to each question, beside the greedy one."),
)
@click.option("--max-new-tokens", default=128, show_default=True, type=LONGEST_ANSWER, help=_("Longest answer."))
@click.option(
    "--held-out", default=64, show_default=True, type=click.IntRange(0), help=_("Most held-out samples; 0 for none.")
)
@click.option("--facts", "with_facts", is_flag=True, help=_("Ask the fact sheet of the recipe too."))
@click.option(
    "--sheet", type=click.Path(path_type=Path), help=_("A fact sheet to ask in place of the one that the recipe names.")
)
@click.option("--blind", is_flag=True, help=_("Show the answers without names and let me pick."))
@runs_option
@json_option
def compare(
    names: tuple[str, ...],
    questions: Path | None,
    system: str | None,
    seeds: int,
    max_new_tokens: int,
    held_out: int,
    with_facts: bool,
    sheet: Path | None,
    blind: bool,
    root: Path,
    as_json: bool,
) -> int:
    from fasttune.terminal import blind as blindly
    from fasttune.terminal import comparison

    if len(names) > 2:
        raise click.UsageError(_("name one model or two"))
    if blind:
        blindly.require_terminal()
    from fasttune.analysis import compare as comparing

    request = comparing.Request(names, root, questions, system, seeds, max_new_tokens, held_out, with_facts, sheet)
    if blind:
        return blindly.compare_blind(*comparing.ask_only(request), as_json=as_json)
    return comparison.show_comparison(comparing.compare(request), as_json=as_json)
