"""All measurements of an export's files: what they are measured against, computed once, and each file's figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.export import conversations, grid, kept, llama, quantize, verdict, verify
from fasttune.export.kept import Distances, Enough, Reference
from fasttune.export.preflight import ExportPlan
from fasttune.runs.outcomes import ExportFigures, MeasuredOn


@dataclass(frozen=True)
class Standard:
    """What files are measured against: the reference of the check conversation, `fixed`, and of the run's `own`
    conversations, which come from `origin`; where it has none, they are the same. `trained` and `untrained` are the
    distances of the trained model and of the base on `own`, `in_4_bits` those of the adapter on the base in NF4 where
    QLoRA trained it."""

    fixed: Reference
    own: Reference
    origin: MeasuredOn
    trained: Distances
    untrained: Distances | None
    in_4_bits: Distances | None
    base_bits: int | None

    @property
    def learned(self) -> float | None:
        """KL(trained ‖ base) in nats; None where there is no adapter."""
        return None if self.untrained is None else float(self.untrained.kl.mean())

    def kept(self, kl: float) -> float | None:
        """The share of what was learned that a file at this KL keeps; None where too little was learned to say."""
        learned = self.learned
        return None if learned is None or learned < verdict.LITTLE else 1 - kl / learned


@dataclass(frozen=True)
class Measured:
    """A measured file: the checks of its document, and its distances on the standard's own conversations."""

    checks: dict[str, Any]
    own: Distances


def compute_standard(plan: ExportPlan) -> Standard:
    """The standard of an export: one float32 pass of the trained model and one of the base over all passages."""
    source, request = plan.source, plan.request
    base, chosen = source.base, request.conversations
    check = verify.check_passage(base, source.tokenizer, request.system)
    own = conversations.choose(chosen.measured, source.tokenizer, chosen.learn, base.shape)
    reference = kept.compute_reference(base, source.loras, (check, *own), is_qlora=request.is_qlora)
    fixed = reference.part(slice(0, 1))
    measured = reference.part(slice(1, None)) if own else fixed
    trained, untrained = kept.measure_reference(measured)
    in_4_bits, origin = kept.measure_4_bits(measured), chosen.origin if own else "fixed"
    return Standard(fixed, measured, origin, trained, untrained, in_4_bits, grid.find(base))


def check_exact(path: Path, standard: Standard) -> None:
    """Raises FasttuneError where the F16 file that others are made from is not the trained model."""
    verify.check_file(path, "f16", standard.fixed)


def measure(path: Path, quantization: str, standard: Standard, enough: Enough | None = None) -> Measured:
    """Measure a file on the run's own conversations, which `enough` may leave early, and on the check conversation.
    Raises FasttuneError as verify does."""
    fine = quantization in verify.FINE
    context = max(verify.context_for(standard.fixed), verify.context_for(standard.own))
    with llama.open_gguf(path, context) as model:
        own = kept.measure_file(model, standard.own, from_base=fine, enough=enough)
        logits = verify.check_distances(path, quantization, own)
        is_left = len(own.kl) < len(standard.own.trained)
        if standard.own is not standard.fixed and not is_left:
            fixed = kept.measure_file(model, standard.fixed, from_base=fine)
            logits = verify.check_distances(path, quantization, fixed)
    return Measured({"logits": logits}, own)


def figures(
    plan: ExportPlan, quantization: str, path: Path, standard: Standard, own: Distances, *, picked: bool
) -> ExportFigures:
    """The figures of a partial file at `path`; `picked` as in ExportFigures."""
    kl = float(own.kl.mean())
    share, stored = standard.kept(kl), quantize.stored(path)
    return ExportFigures(
        file=plan.request.path(quantization).name,
        type=quantization,
        bytes=path.stat().st_size,
        judgement=verdict.judge(share, plan.request.keep),
        measured_on=standard.origin,
        conversations=len(standard.own.passages),
        tokens=len(own.kl),
        kl=kl,
        top1=float(own.same_top.mean()),
        perplexity=own.perplexity,
        trained_perplexity=standard.trained.perplexity,
        base_perplexity=None if standard.untrained is None else standard.untrained.perplexity,
        learned=standard.learned,
        kept=share,
        tensor_types=stored.types,
        imatrix=plan.imatrix if quantization in quantize.K_TYPES else "none",
        picked=picked,
        base_bits=standard.base_bits,
        bits_per_weight=stored.bits_per_weight,
        fallback_types=quantize.fallback_types(quantization, stored),
        nf4_kl=None if standard.in_4_bits is None else float(standard.in_4_bits.kl.mean()),
        nf4_perplexity=None if standard.in_4_bits is None else standard.in_4_bits.perplexity,
    )
