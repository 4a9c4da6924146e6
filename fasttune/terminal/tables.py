"""What the reporting verbs print: plans, samples, runs, results. Tables for people, one JSON document with --json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fasttune.console import FasttuneError, _, ngettext, print_json, say, show_findings, stdout_console, usage_error
from fasttune.planning.strategy import Plan
from fasttune.recipe.values import as_toml
from fasttune.runs import documents


def line(text: str) -> None:
    """A line of data on stdout, brackets and all."""
    stdout_console.print(text, markup=False, soft_wrap=True)


def plan(todo: Plan, *, as_json: bool) -> None:
    """Every resolved value with its source, and the counts that follow from the data."""
    document, findings = documents.as_json(todo.document()), [*todo.dataset.findings, *todo.findings]
    if as_json:
        print_json(document | {"findings": [asdict(finding) for finding in findings]})
        return
    show_findings(findings)
    table = Table(box=None, pad_edge=False, title=escape(str(todo.recipe.path)), title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column(_("value"), overflow="fold")  # Chinese has no spaces to wrap at
    table.add_column(_("from"))
    for entry in document["settings"]:
        table.add_row(entry["key"], escape("" if entry["value"] is None else as_toml(entry["value"])), entry["source"])
    stdout_console.print(table)
    line(
        _(
            "{train} samples to train on, {val} held out; "
            "{per_epoch} steps an epoch, {total} steps ({epochs:.2f} epochs)",
            train=len(todo.dataset.train),
            val=len(todo.dataset.held_out),
            per_epoch=todo.steps_per_epoch,
            total=todo.total_steps,
            epochs=todo.epochs,
        )
    )
    line(_("system prompt it is served with: {system}", system=todo.system if todo.system is not None else _("none")))
    line(_("nothing was started; train with: fasttune run {recipe}", recipe=todo.recipe.path))


def sample(where: str, base: str, recipe_file: Path | None, overrides: Sequence[str], *, as_json: bool) -> None:
    """The tokens of one sample as the model will see them, the learned ones marked (also without colour)."""
    from fasttune.data import dataset as files
    from fasttune.data.tokenize import pieces, tokenize_samples
    from fasttune.recipe.load import load_recipe
    from fasttune.recipe.schema import DataRecipe, ModelRecipe
    from fasttune.training import hub
    from fasttune.training import model as models

    path, _colon, line = where.rpartition(":")
    if not path or not line.split("#")[0].isdigit():
        raise usage_error(
            "not-a-sample", _("{text} is not FILE:LINE", text=where), fix=_("for example data/linzhi/train.jsonl:17")
        )
    chosen = load_recipe(recipe_file, overrides) if recipe_file else None
    of_data = chosen.data if chosen else DataRecipe(train=(path,))
    of_model = chosen.model if chosen else ModelRecipe(base=base)
    reading = files.read_samples(path)
    found = [one for one in files.with_system(reading.samples, of_data.system) if one.id == where]
    if not found:
        problems = [finding for finding in reading.findings if finding.where == where]
        if problems:
            raise FasttuneError(*problems)
        raise usage_error(
            "no-such-sample",
            _("no sample begins at line {line}", line=line),
            where=path,
            fix=_(
                "samples are named by the line they begin on; the file has {count} of them", count=len(reading.samples)
            ),
        )
    tokenizer = models.load_tokenizer(hub.locate(of_model))
    rendered = tokenize_samples(found, tokenizer, of_data, of_model.max_seq_length)
    (example,) = rendered.examples
    shown = pieces(example, tokenizer)
    learned = sum(end - start for start, end in example.supervised)
    if as_json:
        tokens = [{"text": piece.text, "ids": list(piece.tokens), "supervised": piece.supervised} for piece in shown]
        print_json({"sample": where, "tokens": len(example.tokens), "supervised": learned, "pieces": tokens})
        return
    show_findings(rendered.findings)
    text = ""
    for piece in shown:
        body = escape(piece.text)
        text += f"[bold green]⟦{body}⟧[/]" if piece.supervised else f"[dim]{body}[/]"
    stdout_console.print(text.replace("⟧[/][bold green]⟦", "│"), soft_wrap=True)
    say(
        _("{tokens} tokens, {learned} learned (between ⟦ and ⟧, cut by │)", tokens=len(example.tokens), learned=learned)
    )


def result(record: Any, artifacts: Sequence[Any], probes: Sequence[Any], *, as_json: bool) -> None:
    """What a finished run came to: losses, answers before and after, and where everything lies."""
    if as_json:
        print_json(
            {
                "run": record.run.id,
                "steps": record.steps,
                "first": record.first,
                "last": record.last,
                "final_loss": record.final_loss,
                "final_accuracy": record.final_accuracy,
                "best_eval_loss": record.best_eval_loss,
                "seconds": record.seconds,
                "exports": [
                    {"path": str(a.path), "type": a.type, "bytes": a.bytes, "sha256": a.sha256} for a in artifacts
                ],
                "probes": [asdict(probe) for probe in probes],
                "folder": str(record.run.folder),
            }
        )
        return
    if probes:
        table = Table(show_lines=True)
        trained = _("the trained GGUF answers") if artifacts else _("the trained adapter answers")
        for heading in (_("question"), _("the base answered"), trained):
            table.add_column(heading, overflow="fold")  # Chinese has no spaces to wrap at
        for probe in probes:
            table.add_row(escape(probe.question), escape(probe.base), escape(probe.trained))
        stdout_console.print(table)
    line(
        ngettext(
            "loss {first:.3f} -> {last:.3f}, accuracy {accuracy:.1%} (last epoch), {n} step in {seconds:.0f} s",
            "loss {first:.3f} -> {last:.3f}, accuracy {accuracy:.1%} (last epoch), {n} steps in {seconds:.0f} s",
            record.steps,
            first=record.first["loss"],
            last=record.final_loss,
            accuracy=record.final_accuracy,
            seconds=record.seconds,
        )
    )
    line(_("run      {folder}", folder=record.run.folder))
    line(_("adapter  {folder}", folder=record.run.adapter))
    for artifact in artifacts:
        line(_("GGUF     {path}  {size:.1f} MB", path=artifact.path, size=artifact.bytes / 1e6))
    line(_("talk to it: fasttune chat {series}", series=record.run.series))


def benchmark(document: dict[str, Any], *, as_json: bool) -> int:
    """What each arm of a benchmark came to; 1 where one failed or was not the same training."""
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
            say(f"{arm['name']}: {arm_status(arm)}: {arm['why']}")
    line(
        _(
            "{dtype}, batch_size {batch}, losses held to {reference}'s; limit {limit:,.0f} GFLOP/s",
            dtype=document["dtype"],
            batch=document["batch_size"],
            reference=document["reference"],
            limit=max(document["limit_gflops"].values(), default=0.0),
        )
    )
    return int(bad)


def arms_table(headings: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> None:
    """A line for each arm on stdout."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cells in rows:
        table.add_row(escape(name), *cells)
    stdout_console.print(table)
    stdout_console.print()


def speed_cells(arm: dict[str, Any]) -> list[str]:
    """How fast an arm was; nothing for one that is invalid: a wrong training has no speed."""
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
    """What an arm computed, and whether that is what the reference did."""
    same = _("yes") if arm["status"] == "ok" else _("no")
    return [f"{arm['first_loss']:.6f}", f"{arm['last_loss']:.6f}", f"{arm['grad_norm']:.6f}", same]


def arm_status(arm: dict[str, Any]) -> str:
    """The status in words that have a translation."""
    return {"failed": _("failed"), "skipped": _("skipped"), "invalid": _("invalid")}[arm["status"]]
