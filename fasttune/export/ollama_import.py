"""A run's file into Ollama, and the proof that it answers there as it does here.

After a training nothing of this may cost the user the results: a server that is missing, or fails, is a warning with
the commands to type. `fasttune export --ollama` is asked for the import itself, and fails where it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.command import command_line, runs_option
from fasttune.console import FasttuneError, Finding, _
from fasttune.export.artifact import Artifact
from fasttune.export.ollama import import_into_ollama
from fasttune.export.proof import QUESTION, proof_findings, proof_line, prove
from fasttune.export.request import AUTO
from fasttune.export.served import to_serve
from fasttune.export.serving import serving_of_run
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs import documents
from fasttune.runs.outcomes import OllamaProof
from fasttune.runs.store import Run

Report = Callable[[str], None]
OF_THE_SERVER = ("ollama-unreachable", "ollama-failed")


@dataclass(frozen=True)
class OllamaImport:
    """What an import came to. `kept` is the name of the former model of this name, None where there was none; `proof`
    is None where the import, or the proof, failed: `findings` say why."""

    model: str
    kept: str | None
    proof: OllamaProof | None
    findings: tuple[Finding, ...]


def import_run(run: Run, base: Path, artifact: Artifact, recipe: ExportRecipe, report: Report) -> OllamaImport:
    """Import a run's file under the name in export.ollama and prove it. The findings are about the proof.

    Raises FasttuneError where the import fails; the server's models are unchanged then.
    """
    model, serving = recipe.ollama, serving_of_run(run, base, recipe)
    kept = import_into_ollama(artifact, model, num_ctx=recipe.num_ctx, serving=serving, report=report)
    report(_("asking {model} one question, as a proof", model=model))
    try:
        proof = prove(artifact, model, question(run), documents.read_plan(run).served_system, base)
    except FasttuneError as problem:
        return OllamaImport(model, kept, None, unproven(model, problem))
    findings = tuple(proof_findings(proof, artifact.path))
    if not findings:
        report(proof_line(proof))
    return OllamaImport(model, kept, proof, findings)


def import_after_training(
    run: Run, base: Path, artifacts: Sequence[Artifact], recipe: ExportRecipe, report: Report
) -> OllamaImport:
    """The same with the first of the files that is served. A server that is missing or fails is a warning, as is that
    none is served. Raises FasttuneError for a file that is no longer the one that was exported."""
    served = to_serve(artifacts)
    if served is None:
        return OllamaImport(recipe.ollama, None, None, (held_back(run, recipe.ollama),))
    try:
        return import_run(run, base, served, recipe, report)
    except FasttuneError as problem:
        if not {finding.code for finding in problem.findings} <= set(OF_THE_SERVER):
            raise
        findings = tuple(later(run, recipe.ollama, finding) for finding in problem.findings)
        return OllamaImport(recipe.ollama, None, None, findings)


def held_back(run: Run, model: str) -> Finding:
    """The warning that no file of a run is good enough for Ollama."""
    again = command_line(["export", run.id, "--gguf", AUTO, "--ollama", model, *runs_option(run.root)])
    what = _("{model} is not in Ollama: no file keeps half of what was learned", model=model)
    fix = _("import the smallest that does: `{again}`", again=again)
    return Finding("gguf-loses-training", "warning", run.id, what, fix=fix)


def later(run: Run, model: str, failure: Finding) -> Finding:
    """A failure of the server as a warning, with the commands that import the model once it is mended."""
    again = command_line(["export", run.id, "--ollama", model, *runs_option(run.root)])
    what = _("{model} is not in Ollama yet: {reason}", model=model, reason=failure.what)
    if failure.code == "ollama-unreachable":
        fix = _(
            "start the server with `{serve}`, then import the file with `{again}`", serve="ollama serve", again=again
        )
    else:
        fix = _("look at the server's log, then import the file with `{again}`", again=again)
    return replace(failure, level="warning", what=what, fix=fix)


def unproven(model: str, problem: FasttuneError) -> tuple[Finding, ...]:
    """The warnings that a model is in Ollama and could not be asked."""
    return tuple(
        replace(
            one, level="warning", what=_("{model} is in Ollama, not proven: {reason}", model=model, reason=one.what)
        )
        for one in problem.findings
    )


def question(run: Run) -> str:
    """The run's first probe question, or QUESTION where it has none."""
    probes = documents.read_scores(run).probes if run.scores.is_file() else ()
    return probes[0].question if probes else QUESTION
