"""The end of `fasttune plan`: tokens, memory against what is free, time, and what to change where it does not fit."""

from __future__ import annotations

from fasttune.console import COMMA, N_, Finding, _, ngettext
from fasttune.training.estimate import Download, Estimate
from fasttune.training.memory import GIB, Memory

PARTS = {
    "weights": N_("weights {size:.1f}"),
    "adapter": N_("adapter {size:.1f}"),
    "optimizer": N_("optimizer {size:.1f}"),
    "activations": N_("activations {size:.1f}"),
    "logits": N_("logits {size:.1f}"),
    "runtime": N_("torch and the rest {size:.1f}"),
}


def estimate_lines(estimate: Estimate) -> list[str]:
    """What a plan will take, a line each for tokens, memory and time."""
    lines = [token_line(estimate)]
    if estimate.memory is None:
        lines.append(_("memory: unknown, because the base is not on this disk and no public Qwen2.5"))
    else:
        lines.append(memory_line(estimate, estimate.memory))
    return [*lines, time_line(estimate), *download_line(estimate.download)]


def token_line(estimate: Estimate) -> str:
    """The samples' tokens, and those that are computed once prefixes are shared."""
    text = _(
        "{tokens:,} tokens an epoch, {computed:,} of them computed (shared prefixes once); longest row: {longest:,}",
        tokens=estimate.tokens,
        computed=estimate.computed_tokens,
        longest=estimate.longest,
    )
    if not estimate.counted:
        return _("{text}; estimated from characters", text=text)
    return text if estimate.exact else _("{text}; estimated from {n:,} of the samples", text=text, n=estimate.counted)


def memory_line(estimate: Estimate, memory: Memory) -> str:
    """The memory at the peak by its parts, against what is free."""
    parts = _(COMMA).join(_(PARTS[name], size=size / GIB) for name, size in memory.parts().items())
    total, free = memory.total / GIB, estimate.free / GIB
    if estimate.device == "cuda":
        text = _(
            "memory: about {total:.1f} of {free:.1f} GiB free on the GPU ({parts})", total=total, free=free, parts=parts
        )
    else:
        text = _("memory: about {total:.1f} of {free:.1f} GiB RAM that are free ({parts})",
                 total=total, free=free, parts=parts)  # fmt: skip
    return _("{text}, with gradient checkpointing", text=text) if estimate.checkpointing else text


def time_line(estimate: Estimate) -> str:
    """How long loading and training take, by the speed of an earlier run; or that no run tells."""
    if estimate.seconds is None:
        return _("time: unknown, until a run has trained this base on this machine")
    return _("time: about {duration} to load and train, as fast as {run} was",
             duration=duration(estimate.seconds), run=estimate.seconds_from)  # fmt: skip


def download_line(download: Download | None) -> list[str]:
    """What a training downloads first; none where the base is on this machine."""
    if download is None:
        return []
    if download.size is None:
        return [_("download: {base} is not on this machine yet; its size is unknown", base=download.base)]
    return [_("download: {base} is not on this machine yet, about {size:.1f} GB", base=download.base,
              size=download.size / 1e9)]  # fmt: skip


def epochs_line(kept: int, estimate: Estimate) -> list[str]:
    """How many epochs are kept and what they take on the disk, in one line; none where none is kept."""
    if not kept:
        return []
    text = ngettext("the adapter of {n} epoch is kept", "the adapters of {n} epochs are kept", kept)
    if estimate.epoch_bytes is None:
        return [_("disk: {kept}", kept=text)]
    return [_("disk: {kept}, about {size:.1f} MB (train.keep_epochs)", kept=text,
              size=kept * estimate.epoch_bytes / 1e6)]  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as exact as an estimate is."""
    if seconds < 90:
        return _("{n:.0f} s", n=seconds)
    if seconds < 5400:
        return _("{n:.0f} min", n=seconds / 60)
    return _("{n:.1f} h", n=seconds / 3600)


def does_not_fit(estimate: Estimate, where: str, command: str) -> list[Finding]:
    """The warning that a plan needs more memory than is free, with the command that would train within it ("": none is
    known)."""
    if estimate.fits is not False or estimate.least is None:
        return []
    what = _("even with rows of one sample it needs about {needed:.1f} GiB, and {free:.1f} are free",
             needed=estimate.least.total / GIB, free=estimate.free / GIB)  # fmt: skip
    why = _("the training would run out of memory, or the system would end it")
    fix = _("close other programs, or take a machine with more memory")
    if command:
        fix = _("this fits: `{command}`", command=command)
    return [Finding("memory-too-small", "warning", where, what, why, fix)]


def folded_away(count: int) -> str:
    """The line in place of the settings that have their defaults."""
    return ngettext("{n} more setting has its default; `--all` shows it",
                    "{n} more settings have their defaults; `--all` shows them", count)  # fmt: skip
