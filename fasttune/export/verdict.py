"""What follows from the figures of a file: whether it is served, and what is said to the user.

    kept >= export.keep (0.9)   keeps            served
    kept >= HALF                loses-much       served, with a warning and the type that keeps more
    kept <  HALF                loses-training   written as asked; not imported into Ollama, and chat and the probe
                                                 questions do not take it by themselves
    learned < LITTLE            not-judged       the run itself changed next to nothing: a warning, once an export

A type that the user asked for is never refused for the loss that the type has by nature. The limits and what they were
chosen by: docs/export.md.
"""

from __future__ import annotations

from pathlib import Path

from fasttune.command import command_line, runs_option
from fasttune.console import Finding, _
from fasttune.export.weights import Shape
from fasttune.export.write import WRITTEN_TYPES, written_bytes
from fasttune.runs.outcomes import ExportFigures, Judgement

HALF = 0.5
LITTLE = 1e-3  # nats: as far as Q8_0 by itself moves a model, so nothing can be told from rounding


def judge(kept: float | None, keep: float) -> Judgement:
    """The judgement on a file that keeps a share of what was learned, at least `keep` of which is asked for."""
    if kept is None:
        return "not-judged"
    if kept >= keep:
        return "keeps"
    return "loses-much" if kept >= HALF else "loses-training"


def learned_nothing(name: str, learned: float | None) -> Finding | None:
    """The warning that a run, not its files, has learned next to nothing."""
    if learned is None or learned >= LITTLE:
        return None
    what = _("the run has changed next to nothing: KL {learned:.2g} between base and trained model", learned=learned)
    why = _("the files hold the adapter, but it answers as the base does")
    fix = _("train longer, or with a higher train.learning_rate")
    return Finding("run-learned-nothing", "warning", name, what, why, fix)


def loss_of_type(figures: ExportFigures, shape: Shape, run_id: str, root: Path | None) -> Finding | None:
    """The warning that a file loses much, or most, of what was learned, with the type that keeps more and its size."""
    if figures.kept is None or figures.judgement in ("keeps", "not-judged"):
        return None
    share = f"{max(0.0, figures.kept):.0%}"
    if figures.judgement == "loses-much":
        what = _("{type} keeps {share} of what was learned (KL {kl:.2g} of {learned:.2g})", type=figures.type,
                 share=share, kl=figures.kl, learned=figures.learned)  # fmt: skip
        return Finding("gguf-loses-much", "warning", figures.file, what, "", keeps_more(figures, shape, run_id, root))
    what = _("{type} rounds most of the training away: it keeps {share} of what was learned (KL {kl:.2g} of "
             "{learned:.2g}); the file is written, but neither imported into Ollama nor taken by chat unless named",
             type=figures.type, share=share, kl=figures.kl, learned=figures.learned)  # fmt: skip
    why = grid_reason(figures.base_bits)
    return Finding("gguf-loses-training", "warning", figures.file, what, why, keeps_more(figures, shape, run_id, root))


def keeps_more(figures: ExportFigures, shape: Shape, run_id: str, root: Path | None) -> str:
    """What to type for a file that keeps more: the smallest that is good enough, and the next type that surely is."""
    larger = "f16" if figures.type in ("q8_0", "bf16") else "q8_0"
    size = written_bytes(shape, WRITTEN_TYPES[larger]) / 1e6
    where = [] if root is None else runs_option(root)
    found = command_line(["export", run_id, "--gguf", larger, *where])
    if larger == "f16":
        return _("{type} keeps more ({size:.0f} MB): `{command}`", type=larger, size=size, command=found)
    auto = command_line(["export", run_id, "--gguf", "auto", *where])
    return _("{type} keeps more ({size:.0f} MB): `{command}`; the smallest that keeps enough: `{auto}`", type=larger,
             size=size, command=found, auto=auto)  # fmt: skip


def grid_reason(bits: int | None) -> str:
    """Why a type may round an adapter away, where the base lies on a quantization grid; empty where it does not."""
    if bits is None:
        return ""
    return _("the base was quantized before: most of its weights lie on a grid of {bits} bits, and rounding them to it "
             "again removes a small adapter", bits=bits)  # fmt: skip
