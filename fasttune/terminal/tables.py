"""What the verbs print: plans, samples, results, benchmarks. Tables for people, one JSON document with --json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from fasttune.console import (
    COLON,
    FasttuneError,
    UsageError,
    _,
    exit_code,
    ngettext,
    print_json,
    put,
    say,
    show_findings,
    stdout_console,
    usage_error,
)
from fasttune.data import dataset
from fasttune.data.dataset import Sample
from fasttune.data.reader import read_records
from fasttune.planning.strategy import Plan
from fasttune.recipe.values import as_toml
from fasttune.runs import epochs, summary, typed_json
from fasttune.terminal import check_report, epoch_table, estimates, runs_tree
from fasttune.terminal.export_table import exports_table
from fasttune.terminal.probe_table import probes_table, why_not_asked
from fasttune.terminal.setting_source import source_word
from fasttune.terminal.verdicts import result_lines

if TYPE_CHECKING:
    from fasttune.export import Artifact
    from fasttune.export.ollama_import import OllamaImport
    from fasttune.recipe.schema import DataRecipe
    from fasttune.runs.documents import Probe
    from fasttune.runs.store import Run
    from fasttune.training.estimate import Estimate
    from fasttune.training.train import RunRecord


def line(text: str) -> None:
    """Print a line on stdout as it stands, without markup."""
    put(text)


def show_plan(
    plan: Plan, command: str, estimate: Estimate, command_that_fits: str, *, as_json: bool, show_all: bool
) -> None:
    """Print the resolved values with their sources (plain defaults with `show_all` alone), the counts that follow from
    the data, what the training will take, and the command that trains.

    `command_that_fits` trains within the free memory where the plan does not; "" where none is known.
    """
    findings = [*plan.dataset.findings, *plan.findings]
    findings += estimates.does_not_fit(estimate, str(plan.recipe.path), command_that_fits)
    if as_json:
        document = typed_json.as_json(plan.document())
        shown = [asdict(finding) for finding in findings]
        print_json(document | {"estimate": estimate.document(), "findings": shown})
        return
    show_findings(findings)
    stdout_console.print(settings_table(plan, show_all=show_all))
    if not show_all and (folded := sum(one.source == "default" for one in plan.document().settings)):
        line(estimates.folded_away(folded))
    line(counts_line(plan))
    if plan.dataset.general:
        line(check_report.replay_line(len(plan.dataset.general)))
    for text in [*estimates.estimate_lines(estimate), *estimates.epochs_line(plan.kept_epochs, estimate)]:
        line(text)
    system = plan.served_system
    line(_("system prompt it is served with: {system}", system=_("none") if system is None else system))
    line(_("nothing was started; train with: `{command}`", command=command))


def counts_line(plan: Plan) -> str:
    """The samples, steps and epochs that follow from the data."""
    return _(
        "{samples} to train on, {val} held out; {per_epoch}, {steps} ({epochs:.2f} epochs)",
        samples=ngettext("{n} sample", "{n} samples", len(plan.dataset.train)),
        val=len(plan.dataset.held_out),
        per_epoch=ngettext("{n} step an epoch", "{n} steps an epoch", plan.steps_per_epoch),
        steps=ngettext("{n} step", "{n} steps", plan.total_steps),
        epochs=plan.epochs,
    )


def settings_table(plan: Plan, *, show_all: bool) -> Table:
    """A row for each setting of a plan: key, value as in a recipe, source. Without `show_all`, those that have a plain
    default are left out; what a default came to by the data ("auto") is shown."""
    table = Table(box=None, pad_edge=False, title=escape(str(plan.recipe.path)), title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column(_("value"), overflow="fold")  # Chinese has no spaces to wrap at
    table.add_column(_("from"))
    for setting in plan.document().settings:
        if setting.source == "default" and not show_all:
            continue
        value = escape("" if setting.value is None else as_toml(setting.value))
        table.add_row(setting.key, value, source_word(setting.source))
    return table


def show_sample(where: str, base: str, recipe_file: Path | None, overrides: Sequence[str], *, as_json: bool) -> None:
    """Print the tokens of the sample at FILE:LINE as the model sees them, the supervised ones marked (also without
    colour).

    Raises UsageError where no sample begins there, FasttuneError where the sample can't be used.
    """
    from fasttune.data.tokenize import ANY_LENGTH, pieces, tokenize_samples, too_long
    from fasttune.recipe.load import load_recipe
    from fasttune.recipe.schema import DataRecipe, ModelRecipe
    from fasttune.training import hub
    from fasttune.training import model as models

    recipe = load_recipe(recipe_file, overrides) if recipe_file else None
    data = recipe.data if recipe else DataRecipe(train=(where.rpartition(":")[0],))
    model = recipe.model if recipe else ModelRecipe(base=base)
    sample = find_sample(where, data)
    tokenizer = models.load_tokenizer(hub.locate(model))
    tokenized = tokenize_samples([sample], tokenizer, data, ANY_LENGTH)
    (example,) = tokenized.examples
    findings = list(tokenized.findings)
    if len(example.tokens) > model.max_seq_length:  # shown all the same: here one looks for the place to split it
        findings.append(replace(too_long(sample.id, len(example.tokens), model.max_seq_length), level="warning"))
    shown = pieces(example, tokenizer)
    supervised = sum(end - start for start, end in example.supervised)
    if as_json:
        tokens = [{"text": piece.text, "ids": list(piece.tokens), "supervised": piece.supervised} for piece in shown]
        print_json({"sample": sample.id, "tokens": len(example.tokens), "supervised": supervised, "pieces": tokens,
                    "findings": [asdict(finding) for finding in findings]})  # fmt: skip
        return
    show_findings(findings)
    marked = [(escape(piece.text), piece.supervised) for piece in shown]
    text = "".join(f"[bold green]⟦{body}⟧[/]" if is_supervised else f"[dim]{body}[/]" for body, is_supervised in marked)
    stdout_console.print(text.replace("⟧[/][bold green]⟦", "│"), soft_wrap=True)
    say(
        _("{tokens} tokens, {supervised} supervised (between ⟦ and ⟧, separated by │)",
          tokens=len(example.tokens), supervised=supervised)
    )  # fmt: skip


def find_sample(where: str, data: DataRecipe) -> Sample:
    """The sample that begins at FILE:LINE or holds that line, with the system prompt and facts of `data`. Raises as
    `show_sample` does.
    """
    path, _colon, line = where.rpartition(":")
    if not path or not line.split("#")[0].isdigit():
        what = _("{text} is not FILE:LINE", text=where)
        raise usage_error("not-a-sample", what, fix=_("for example data/linzhi/train.jsonl:17"))
    reading = dataset.read_samples(path)
    begins = where if "#" in line else beginning(path, int(line))
    samples, _held_out = dataset.prompted(reading.samples, (), data)
    found = [sample for sample in samples if sample.id in (where, begins)]
    if found:
        if found[0].id != where:
            say(_("line {line} is in the sample that begins at {place}", line=line, place=found[0].id))
        return found[0]
    if problems := [finding for finding in reading.findings if finding.where in (where, begins)]:
        raise FasttuneError(*problems)
    if unread := [
        one for one in reading.findings if one.level == "error" and (one.where == path or not reading.samples)
    ]:
        raise UsageError(*unread)
    raise usage_error(
        "no-such-sample",
        _("line {line} is in no sample", line=line),
        where=path,
        fix=_("samples are named by the line they begin on; the file has {n} of them, the first at {first}, the last "
              "at {last}", n=len(reading.samples), first=reading.samples[0].id, last=reading.samples[-1].id),
    )  # fmt: skip


def beginning(path: str, line: int) -> str:
    """FILE:LINE of the record that holds a line of a file; empty where none does."""
    records, _findings = read_records(path)
    return next((f"{path}:{one.place}" for one in records if one.line <= line <= one.last), "")


def show_result(
    record: RunRecord,
    artifacts: Sequence[Artifact],
    probes: Sequence[Probe],
    *,
    ollama: OllamaImport | None = None,
    page: Path | None = None,
    as_json: bool,
) -> int:
    """Print what a finished run has made: losses, answers before and after, where its files and its page lie, and in
    the end what is left to do for Ollama. The exit code: 1 where Ollama serves something else than was trained."""
    findings = ollama.findings if ollama else ()
    if as_json:
        made = {"ollama": ollama_json(ollama), "report": str(page) if page else None}
        print_json({**result_json(record, artifacts, probes), **made})
        return exit_code(findings)
    show_answers(record.run, probes, artifacts)
    figures = summary.read_figures(record.run)
    for text in result_lines(record.run, figures, record.seconds, stdout_console.width, stdout_console.encoding):
        line(text)
    line(_("run      {folder}", folder=record.run.folder))
    line(_("adapter  {folder}", folder=epochs.served_adapter(record.run)))
    if kept := epoch_table.kept_line(record.run):
        line(kept)
    if figures_of_files := [one.figures for one in artifacts if one.figures is not None]:
        stdout_console.print(exports_table(figures_of_files))
    for artifact in artifacts:
        line(_("GGUF     {path}  {size:.1f} MB", path=artifact.path, size=artifact.bytes / 1e6))
    if page:
        line(_("page     {path}", path=page))
    for text in runs_tree.closing_lines(record.run):
        line(text)
    show_findings(findings)
    return exit_code(findings)


def show_answers(run: Run, probes: Sequence[Probe], artifacts: Sequence[Artifact]) -> None:
    """Print the answers to the probe questions, where there are any, and why those of a file are missing."""
    if probes:
        stdout_console.print(probes_table(run, probes, by_gguf=bool(artifacts)))
    if why := why_not_asked(probes, artifacts):
        line(why)


def ollama_json(ollama: OllamaImport | None) -> dict[str, Any] | None:
    """What an import came to, for --json; None where there was none to make."""
    if ollama is None:
        return None
    proof, findings = asdict(ollama.proof) if ollama.proof else None, [vars(one) for one in ollama.findings]
    return {"model": ollama.model, "kept": ollama.kept, "proof": proof, "findings": findings}


def result_json(record: RunRecord, artifacts: Sequence[Artifact], probes: Sequence[Probe]) -> dict[str, Any]:
    """The document of `fasttune run --json`."""
    figures = summary.read_figures(record.run)
    return {
        "run": record.run.id,
        "steps": record.steps,
        "first": record.first,
        "last": record.last,
        "final_loss": record.final_loss,
        "final_accuracy": record.final_accuracy,
        "eval_loss": figures.eval_loss,
        "best_eval_loss": record.best_eval_loss,
        "best_step": figures.best_step,
        "verdict": figures.verdict,
        "verdict_reason": figures.verdict_reason,
        "seconds": record.seconds,
        "exports": artifacts_json(artifacts),
        "probes": [asdict(probe) for probe in probes],
        "folder": str(record.run.folder),
    }


def artifacts_json(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """What the documents of `run --json` and `export --json` say of each file."""
    return [
        {"path": str(one.path), "type": one.type, "bytes": one.bytes, "sha256": one.sha256}
        | {"figures": None if one.figures is None else asdict(one.figures)}
        for one in artifacts
    ]


def show_benchmark(document: dict[str, Any], *, as_json: bool) -> int:
    """Print the figures of each arm of a benchmark; the exit code, 1 where an arm failed or is invalid."""
    bad = any(arm["status"] in ("failed", "invalid") for arm in document["arms"])
    if as_json:
        print_json(document)
        return int(bad)
    ran = [arm for arm in document["arms"] if "losses" in arm]
    speed = [_("s/step"), _("samples/s"), _("tokens/s"), _("speed-up"), _("of the limit"), "GiB", _("start-up")]
    arms_table(speed, [(arm["name"], speed_cells(arm)) for arm in ran])
    same = [_("first loss"), _("last loss"), _("gradient norm"), _("the same training")]
    arms_table(same, [(arm["name"], loss_cells(arm)) for arm in ran])
    for arm in document["arms"]:
        if arm["why"]:
            say(f"{arm['name']}{_(COLON)}{arm_status(arm)}{_(COLON)}{arm['why']}")
    line(
        _(
            "{dtype}, batch_size {batch}, losses compared with {reference}; limit {limit:,.0f} GFLOP/s",
            dtype=document["dtype"],
            batch=document["batch_size"],
            reference=document["reference"],
            limit=max(document["limit_gflops"].values(), default=0.0),
        )
    )
    return int(bad)


def arms_table(headings: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> None:
    """Print a row for each arm on stdout."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(escape(name), *cells)
    stdout_console.print(table)
    stdout_console.print()


def speed_cells(arm: dict[str, Any]) -> list[str]:
    """The speed of an arm; an invalid one, whose losses are off, has none."""
    if arm["status"] == "invalid":
        return [_("invalid")]
    return [
        f"{arm['step_seconds']['median']:.3g}",
        f"{arm['samples_per_second']['median']:.3g}",
        f"{arm['tokens_per_second']['median']:,.0f}",
        f"{arm['speedup']:.2f}" if "speedup" in arm else "",
        f"{arm['limit_share']:.0%}" if "limit_share" in arm else "",
        "/".join(f"{value:.2f}" for value in arm["memory"].values()),
        f"{arm['start_up_seconds']['median']:.1f} s",
    ]


def loss_cells(arm: dict[str, Any]) -> list[str]:
    """The losses of an arm, and whether they are the reference's."""
    same = _("yes") if arm["status"] == "ok" else _("no")
    return [f"{arm['first_loss']:.6f}", f"{arm['last_loss']:.6f}", f"{arm['grad_norm']:.6f}", same]


def arm_status(arm: dict[str, Any]) -> str:
    """The status of an arm in the user's language."""
    return {"failed": _("failed"), "skipped": _("skipped"), "invalid": _("invalid")}[arm["status"]]
