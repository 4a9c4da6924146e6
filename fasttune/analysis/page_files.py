"""The parts of a page about what lies behind a run: its data, the other runs of its series, its files and versions.

Every function returns one part, or None where the run has nothing of it.
"""

from __future__ import annotations

from fasttune.analysis import words
from fasttune.analysis.page_blocks import NONE, Bars, Part, Row, Table, figure
from fasttune.analysis.report_data import DataPicture
from fasttune.analysis.run_report import RunReport
from fasttune.console import _, ngettext
from fasttune.runs.documents import ArtifactDocument, Provenance
from fasttune.runs.summary import Figures


def data(report: RunReport) -> Part | None:
    """How long the samples are, and what shared prefixes save."""
    found: DataPicture | None = report.data
    if found is None:
        return None
    figures = found.figures
    said = [_("{samples} samples to train on, {val} held out", samples=figures.samples, val=figures.held_out)]
    if figures.prefix_tokens:
        saved = 1 - figures.prefix_computed / figures.prefix_tokens
        said.append(_("shared prefixes save {saved:.0%} of the tokens that would be computed", saved=saved))
    if figures.system_prompts:
        prompts = ngettext("{n} system prompt", "{n} different system prompts", figures.system_prompts)
        said.append(prompts)
    tokens = _("tokens a sample") if figures.exact else _("tokens a sample, estimated")
    drawn = (
        Bars("sample-tokens", tokens, _("tokens"), figures.sample_tokens),
        Bars("answer-characters", _("characters an answer"), _("characters"), figures.answer_characters),
    )
    note = _("the data has changed since this run was trained; this is the data of today") if found.is_changed else ""
    return Part("data", _("Data"), "; ".join(said), charts=tuple(one for one in drawn if one.values), note=note)


def lineage(report: RunReport) -> Part | None:
    """All runs of the series, each with what it came from."""
    if len(report.series) < 2:
        return None
    headings = (_("run"), _("from"), _("changed"), _("epochs"), _("held-out loss"), _("verdict"), _("date"))
    rows = tuple(Row(lineage_cells(one), here=one.id == report.id) for one in report.series)
    return Part("lineage", _("Runs of this series"), table=Table(headings, rows))


def lineage_cells(one: Figures) -> tuple[str, ...]:
    """A run in a row."""
    word = words.verdict_word(one.verdict) if one.status == "finished" else words.status_word(one.status)
    named = one.id.rpartition("/")[2] + (f" ({_('in use')})" if one.current else "")
    changed = ", ".join(f"{c.key} {words.value_word(c.old)} → {words.value_word(c.new)}" for c in one.changes)
    return (
        named,
        (one.parent or NONE).rpartition("/")[2],
        changed if one.parent and changed else NONE,
        f"{one.epochs:.3g}",
        figure(one.eval_loss if words.has_held_out_loss(one) else None),
        word,
        one.date,
    )


def exported(report: RunReport) -> Part | None:
    """The GGUF files: size, how far from the trained model, how much is kept of what was learned, and perplexity."""
    if not report.exports:
        return None
    headings = (
        _("file"),
        _("size"),
        _("type"),
        _("KL from the trained model"),
        _("kept"),
        _("perplexity"),
        _("same top token"),
    )
    rows = tuple(Row((name, words.size_word(size), *measured(document))) for name, size, document in report.exports)
    return Part("exports", _("Exports"), table=Table(headings, rows))


def measured(document: ArtifactDocument | None) -> tuple[str, ...]:
    """What was measured of a file: by its figures, of files before there were any by its check alone."""
    if document is None:
        return (NONE,) * 5
    if found := document.figures:
        kept = figure(found.kept, ".0%")
        return found.type, small(found.kl), kept, f"{found.perplexity:.4g}", figure(found.top1, ".1%")
    logits = document.checks.get("logits")
    checks = logits if isinstance(logits, dict) else {}
    top = checks.get("top1")
    return (
        document.type,
        small(checks.get("kl_mean")),
        NONE,
        NONE,
        figure(top if isinstance(top, float) else None, ".1%"),
    )


def small(value: object) -> str:
    """A KL divergence in a cell."""
    return f"{value:.2g}" if isinstance(value, (int, float)) else NONE


def versions(report: RunReport) -> Part | None:
    """What made the run, and with which settings."""
    found = report.provenance
    if found is None:
        return None
    rows = [
        ("fasttune", found.fasttune + (f" ({found.commit[:12]})" if found.commit else "")),
        (_("began"), found.created),
        (_("device"), str(found.device.get("name") or found.device.get("kind") or NONE)),
        *kernels(found),
        ("Python", found.python),
        (_("system"), found.platform),
        (_("base"), f"{found.base.name} {found.base.revision}".strip()),
        (_("fingerprint of the base"), found.base.fingerprint[:16]),
        (_("fingerprint of the data"), found.data.fingerprint[:16]),
        (_("command"), " ".join(found.command)),
        *((name, str(version)) for name, version in sorted(found.packages.items())),
    ]
    if report.plan:
        rows += [
            (one.key, f"{words.value_word(one.value)}  ({one.source})")
            for one in report.plan.settings
            if not one.source.startswith("default")
        ]
    table = Table((_("what"), _("value")), tuple(Row(row) for row in rows), numbers=False)
    return Part("versions", _("Versions and settings"), table=table)


def kernels(found: Provenance) -> list[tuple[str, str]]:
    """How rows were computed on a GPU: what was compared with plain attention before training, and CUDA graphs."""
    checks = (
        (_("shared prefixes beside single samples"), found.sharing_check),
        (_("packed rows beside single samples"), found.packing_check),
    )
    rows = [
        (what, _("relative difference: loss {loss:.1e}, gradient {gradient:.1e}", loss=one.loss, gradient=one.gradient))
        for what, one in checks
        if one is not None
    ]
    if found.cuda_graphs:
        state = _("on") if found.cuda_graphs == "on" else _("off: {why}", why=found.cuda_graphs_off or NONE)
        rows.append(("CUDA graphs", state))
    return rows
