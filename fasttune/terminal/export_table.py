"""What exported files keep of the training, as a table for 50 columns and more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fasttune.console import _, ngettext
from fasttune.runs.outcomes import ExportFigures

WRITTEN = ("f16", "bf16", "q8_0")  # types whose matrices are all of that type


def exports_table(figures: Sequence[ExportFigures]) -> Group:
    """A row for each file with size, KL, what is kept and perplexity, between the base and the trained model; then what
    it was measured on, and of which types the matrices really are where a type's name does not say it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("MB", "KL", _("kept"), _("perplexity")):
        table.add_column(heading, justify="right", no_wrap=True)
    first = figures[0]
    if first.learned is not None and first.base_perplexity is not None:
        table.add_row(_("base"), "", f"{first.learned:#.2g}", "0%", f"{first.base_perplexity:.4g}")
    table.add_row(_("trained"), "", "0", "100%", f"{first.trained_perplexity:.4g}")
    for one in figures:
        kept = "–" if one.kept is None else share(one.kept)
        table.add_row(
            escape(one.type), f"{one.bytes / 1e6:.0f}", f"{one.kl:#.2g}", kept, f"{one.perplexity:.4g}"
        )  # fmt: skip
    return Group(table, *(Text(line) for line in notes(figures)))


def share(kept: float) -> str:
    """A share in percent, with a decimal where 100 % would hide a loss; below zero it is zero."""
    percent = max(0.0, kept) * 100
    return f"{percent:.1f}%" if 99 <= percent < 99.95 else f"{percent:.0f}%"


def notes(figures: Sequence[ExportFigures]) -> Iterator[str]:
    """The lines below the table."""
    first = figures[0]
    tokens = ngettext("{n} supervised token", "{n} supervised tokens", first.tokens)
    if first.measured_on == "held-out":
        yield _("measured on {tokens} of {n} held-out conversations", tokens=tokens, n=first.conversations)
    elif first.measured_on == "training":
        yield _("measured on {tokens} of {n} training conversations: nothing is held out", tokens=tokens,
                n=first.conversations)  # fmt: skip
    else:
        yield _("measured on {tokens} of fixed texts", tokens=tokens)
    if first.nf4_kl is not None and first.nf4_perplexity is not None:
        yield _("trained on the base in 4 bits (NF4), served on the one in 16 bits: KL {kl:.2g} between the two, "
                "perplexity {trained:.4g} and {served:.4g}", kl=first.nf4_kl, trained=first.nf4_perplexity,
                served=first.trained_perplexity)  # fmt: skip
    for one in figures:
        if one.type not in WRITTEN and len(one.tensor_types) > 1:
            yield from what_it_is(one)


def what_it_is(one: ExportFigures) -> Iterator[str]:
    """Of which types the matrices of a file are, and why they are others than its name says."""
    types = ", ".join(f"{count} {name}" for name, count in one.tensor_types.items())
    if one.bits_per_weight is None:
        yield _("{type} is here: {types}", type=one.type, types=types)
        return
    yield _("{type} is here {bits:.1f} bits a weight: {types}", type=one.type, bits=one.bits_per_weight, types=types)
    if one.fallback_types:
        n, count = sum(one.fallback_types.values()), sum(one.tensor_types.values())
        yield _("{n} of its {count} matrices have rows that 256 does not divide: llama.cpp stores them as {types}", n=n,
                count=count, types=", ".join(one.fallback_types))  # fmt: skip
