"""One file after another of an export: written, measured, published.

What several files need is made once, when the first one needs it: the F16 file, the importance matrix, the standard
they are measured against.

    base + adapter ──► f16, bf16, q8_0                                        written here
                  └──► F16 file ── importance matrix ──► every other type     quantized by llama.cpp
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from fasttune.console import COLON, Finding, _, ngettext
from fasttune.export import chatml, conversations, imatrix, measuring, quantize, verdict, verify
from fasttune.export.artifact import Artifact, publish
from fasttune.export.kept import Enough
from fasttune.export.measuring import Measured, Standard
from fasttune.export.preflight import ExportPlan
from fasttune.export.write import WRITTEN_TYPES, write_gguf
from fasttune.files import file_sha256
from fasttune.runs.epochs import weights_digest

Report = Callable[[str], None]  # gets one line a step


class FileMaker:
    """Makes the files of a plan. `f16` and `importance` are paths for partial files, which the caller removes."""

    def __init__(self, plan: ExportPlan, f16: Path, importance: Path, report: Report) -> None:
        self.plan, self.temporary_f16, self.importance, self.report = plan, f16, importance, report

    def write(self, quantization: str, partial: Path) -> None:
        """Write one file at `partial`."""
        if quantization in WRITTEN_TYPES:
            self.write_merged(partial, quantization)
            return
        source, importance = self.f16, self.own_importance
        self.report(_("{quantization}: quantizing", quantization=quantization))
        quantize.quantize(source, partial, quantization, importance)

    def write_merged(self, path: Path, quantization: str) -> None:
        """Write the merged model in one of WRITTEN_TYPES."""
        self.report(_("{quantization}: writing the merged model", quantization=quantization))
        source = self.plan.source
        encoding = WRITTEN_TYPES[quantization]
        write_gguf(path, source.base, source.loras, source.vocabulary, self.plan.metadata, encoding)

    @cached_property
    def f16(self) -> Path:
        """The F16 file that others are made from: the requested one, or a temporary one that was found exact."""
        if "f16" in self.plan.request.types:
            return self.plan.request.path("f16")
        self.write_merged(self.temporary_f16, "f16")
        if self.plan.can_check:
            measuring.check_exact(self.temporary_f16, self.standard)
        return self.temporary_f16

    @cached_property
    def own_importance(self) -> Path | None:
        """The importance matrix to quantize with: of the run's own conversations, or the file that was named; None for
        none."""
        request = self.plan.request
        if self.plan.imatrix != "own":
            return None if self.plan.imatrix == "none" else Path(request.imatrix)
        base, chosen = self.plan.source.base, request.conversations
        passages = conversations.choose(chosen.calibration, self.plan.source.tokenizer, chosen.learn, base.shape)
        text = ngettext("importance matrix: running {n} training conversation in float32",
                        "importance matrix: running {n} training conversations in float32", len(passages))  # fmt: skip
        self.report(text)
        imatrix.compute(base, self.plan.source.loras, passages, self.importance)
        return self.importance

    @cached_property
    def standard(self) -> Standard:
        """What the files are measured against. Says how long it took, and warns of a run that learned nothing."""
        began = time.perf_counter()
        self.report(_("computing the reference outputs in float32"))
        found = measuring.compute_standard(self.plan)
        seconds = time.perf_counter() - began
        self.report(_("reference: {tokens} supervised tokens of {origin}, {seconds:.0f} s",
                      tokens=len(found.trained.kl), origin=origin_text(found), seconds=seconds))  # fmt: skip
        problem = self.plan.request.conversations.problem
        if problem:
            what = _("the run's conversations can't be read, so files are measured on fixed texts: {problem}",
                     problem=problem)  # fmt: skip
            self.warn(Finding("own-conversations-missing", "warning", self.plan.request.run_id, what))
        if finding := verdict.learned_nothing(self.plan.request.run_id, found.learned):
            self.warn(finding)
        if found.in_4_bits is not None:
            self.report(_("trained on the base in 4 bits (NF4), served on the one in 16 bits: KL {kl:.2g} between the "
                          "two, perplexity {trained:.4g} and {served:.4g}", kl=found.in_4_bits.kl.mean(),
                          trained=found.in_4_bits.perplexity, served=found.trained.perplexity))  # fmt: skip
        if found.base_bits is not None:
            what = _("base: most of its weights lie on a grid of {bits} bits: it was quantized before; types near that "
                     "keep less of an adapter", bits=found.base_bits)  # fmt: skip
            self.report(what)
        return found

    def measure(self, quantization: str, partial: Path, enough: Enough | None = None) -> Measured:
        """Measure a partial file. Raises FasttuneError where it is not the trained model."""
        standard, began = self.standard, time.perf_counter()
        tokens = verify.check_tokens(partial, self.plan.source.tokenizer)
        found = measuring.measure(partial, quantization, standard, enough)
        kl, seconds = float(found.own.kl.mean()), time.perf_counter() - began
        share = standard.kept(kl)
        self.report(
            _("{quantization}: measured in {seconds:.0f} s: KL {kl:.2g}", quantization=quantization, kl=kl,
              seconds=seconds)
            if share is None
            else _("{quantization}: measured in {seconds:.0f} s: KL {kl:.2g}, {share:.1%} of what was learned is kept",
                   quantization=quantization, kl=kl, share=max(0.0, share), seconds=seconds)
        )  # fmt: skip
        return Measured({"tokens": tokens, **found.checks}, found.own)

    def finish(self, quantization: str, partial: Path, measured: Measured | None, *, picked: bool = False) -> None:
        """Publish a partial file under its name, with a warning for a type that loses much."""
        plan, request = self.plan, self.plan.request
        path = request.path(quantization)
        figures = None
        checks = {"unchecked": _("llama-cpp-python can't be used")}
        if measured is not None:
            checks = measured.checks
            figures = measuring.figures(plan, quantization, partial, self.standard, measured.own, picked=picked)
            finding = verdict.loss_of_type(figures, plan.source.base.shape, request.run_id, request.root)
            if finding:
                self.warn(finding)
        system = request.system if request.system is not None else chatml.default_system(plan.source.tokenizer)
        artifact = Artifact(path, quantization, file_sha256(partial), partial.stat().st_size, request.run_id, system,
                            checks, figures)  # fmt: skip
        importance = plan.imatrix if quantization in quantize.K_TYPES else "none"
        publish(partial, artifact, request.base, plan.inputs, weights_digest(request.adapter), importance)

    def warn(self, finding: Finding) -> None:
        """Report a warning with its reason and what to do."""
        self.report(f"{_(finding.level)}{_(COLON)}{finding.where}{_(COLON)}{finding.what}")
        if finding.why:
            self.report(f"  {finding.why}")
        if finding.fix:
            hint = _("hint")
            self.report(f"  {hint}{_(COLON)}{finding.fix}")


def origin_text(standard: Standard) -> str:
    """Where the conversations come from that files are measured on."""
    n = len(standard.own.passages)
    if standard.origin == "held-out":
        return ngettext("{n} held-out conversation", "{n} held-out conversations", n)
    if standard.origin == "training":
        return ngettext("{n} training conversation (nothing is held out)",
                        "{n} training conversations (nothing is held out)", n)  # fmt: skip
    return _("fixed texts")


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A path whose file is removed when the block ends, however it ends."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
