"""The probe questions, answered by the GGUF file that will be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.console import _
from fasttune.data.tokenize import prompt_tokens
from fasttune.export import Artifact
from fasttune.export.llama import Sampling, answer, open_gguf
from fasttune.export.served import to_serve
from fasttune.runs import documents
from fasttune.runs.documents import Probe
from fasttune.runs.store import Run
from fasttune.training.model import load_tokenizer
from fasttune.training.probe_answers import is_cut
from fasttune.training.progress import PhaseTimer


def probe(
    run: Run, base: Path, artifacts: Sequence[Artifact], max_new_tokens: int, phases: PhaseTimer
) -> tuple[Probe, ...]:
    """Answer a run's probe questions with the first GGUF file that is served, greedily, and write the answers into
    scores.json.

    `phases` shows which question is being answered. Without a file the answers stay that the adapter gave after
    training. Raises FasttuneError where llama.cpp can't load the file.
    """
    scores = documents.read_scores(run)
    probes, served = scores.probes, to_serve(artifacts)
    if served and probes:
        tokenizer, system = load_tokenizer(base), documents.read_plan(run).served_system
        prompts = [prompt_tokens(probe.question, system, tokenizer) for probe in probes]
        context, answers = max(map(len, prompts)) + max_new_tokens, []
        asking = phases("probe_gguf", _("answering the probe questions with the GGUF file"))
        with asking as show, open_gguf(served.path, context) as model:
            for number, prompt in enumerate(prompts, 1):
                show(_("answering the probe questions: {number} of {n}", number=number, n=len(prompts)))
                answers.append(answer(model, prompt, Sampling(max_new_tokens)).strip())
        probes = tuple(
            replace(probe, trained=answer, trained_cut=is_cut(answer, tokenizer, max_new_tokens))
            for probe, answer in zip(probes, answers, strict=True)
        )
    adapter = "adapter" if any(probe.trained for probe in probes) else None
    answered_by = served.path.name if served else adapter
    documents.write(run.scores, replace(scores, probes=probes, answered_by=answered_by))
    return probes
