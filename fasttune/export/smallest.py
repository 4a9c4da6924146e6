"""`export.gguf = "auto"`: the smallest type that keeps enough of what was learned, found by trying.

Types are tried from small to large, each made with the importance matrix and measured on the run's own conversations. A
type that is clearly below the limit after GIVE_UP_AFTER positions is left. Smaller types than SMALLEST are not tried.
"""

from __future__ import annotations

from fasttune.console import _, error
from fasttune.export.artifact import read_artifact
from fasttune.export.kept import Doubles
from fasttune.export.making import FileMaker, temporary
from fasttune.export.measuring import Measured
from fasttune.export.weights import Shape

# By size where 256 divides the rows (1.5B, 3B, builtin:tiny).
ORDER = ("q2_k", "q3_k_m", "iq4_xs", "iq4_nl", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0", "f16")
NOT_IN_SHORT_ROWS = ("q3_k_m",)  # 355 MB of Qwen2.5-0.5B where IQ4_NL, which keeps more, takes 353
UNJUDGED = "q8_0"  # of a run that learned next to nothing, no type can be told from another
GIVE_UP_AFTER = 256
CLEARLY = 0.1  # below the limit


def pick(maker: FileMaker) -> str:
    """Make the smallest file that keeps export.keep of what was learned; its type. Raises FasttuneError where a file is
    not the trained model."""
    standard, keep = maker.standard, maker.plan.request.keep
    if standard.learned is None or standard.kept(0.0) is None:
        make(maker, UNJUDGED)
        maker.report(_("auto: {type}, as there is too little that was learned to tell types apart", type=UNJUDGED))
        return UNJUDGED
    tried: list[str] = []
    for quantization in order(maker.plan.source.base.shape):
        share = try_type(maker, quantization)
        if share >= keep:
            below = _("; {types} keep less than {keep:.0%}", types=", ".join(tried), keep=keep) if tried else ""
            size = maker.plan.request.path(quantization).stat().st_size / 1e6
            maker.report(_("auto: {type}, {size:.0f} MB, the smallest that keeps {keep:.0%}: {share:.1%} of what was "
                           "learned{below}", type=quantization, size=size, keep=keep, share=share,
                           below=below))  # fmt: skip
            return quantization
        tried.append(f"{quantization} ({max(0.0, share):.0%})")
    what = _("no type keeps {keep:.0%} of what was learned", keep=keep)
    raise error("no-type-keeps-enough", what, where="export.keep", fix=_("choose a lower export.keep"))


def order(shape: Shape) -> tuple[str, ...]:
    """The types to try for a base of this shape, from small to large."""
    left_out = NOT_IN_SHORT_ROWS if shape.hidden_size % 256 else ()
    return tuple(one for one in ORDER if one not in left_out)


def make(maker: FileMaker, quantization: str) -> None:
    """Make a file of a type, unless it exists."""
    if maker.plan.request.path(quantization).exists():
        return
    with temporary(maker.plan.request.path(quantization).with_suffix(".gguf.part")) as partial:
        maker.write(quantization, partial)
        maker.finish(quantization, partial, maker.measure(quantization, partial), picked=True)


def try_type(maker: FileMaker, quantization: str) -> float:
    """The share of what was learned that a type keeps; the file is published where that is enough."""
    path, standard, keep = maker.plan.request.path(quantization), maker.standard, maker.plan.request.keep
    if path.exists() and (figures := read_artifact(path).figures) is not None and figures.kept is not None:
        return figures.kept

    def enough(kl: Doubles) -> bool:
        share = standard.kept(float(kl.mean()))
        return len(kl) >= GIVE_UP_AFTER and share is not None and share < keep - CLEARLY

    with temporary(path.with_suffix(".gguf.part")) as partial:
        maker.write(quantization, partial)
        measured: Measured = maker.measure(quantization, partial, enough)
        share = standard.kept(float(measured.own.kl.mean()))
        assert share is not None  # or nothing would be tried
        if share >= keep:
            maker.finish(quantization, partial, measured, picked=True)
    return share
