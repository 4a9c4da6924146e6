"""The probe questions, answered by the GGUF file that will be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.data.tokenize import prompt_tokens
from fasttune.export import Artifact
from fasttune.export.llama import Sampling, answer, open_gguf
from fasttune.runs import documents
from fasttune.runs.documents import Probe
from fasttune.runs.store import Run
from fasttune.training.model import load_tokenizer


def probe(run: Run, base: Path, artifacts: Sequence[Artifact], max_new_tokens: int) -> tuple[Probe, ...]:
    """Answer a run's probe questions with the first GGUF file, greedily, and write the answers into scores.json.

    Without a file the answers stay that the adapter gave after training. Raises FasttuneError where llama.cpp can't
    load the file.
    """
    scores = documents.read_scores(run)
    probes = scores.probes
    if artifacts and probes:
        tokenizer, system = load_tokenizer(base), documents.read_plan(run).system
        prompts = [prompt_tokens(probe.question, system, tokenizer) for probe in probes]
        with open_gguf(artifacts[0].path, max(map(len, prompts)) + max_new_tokens) as model:
            answers = [answer(model, prompt, Sampling(max_new_tokens)).strip() for prompt in prompts]
        probes = tuple(replace(probe, trained=answer) for probe, answer in zip(probes, answers, strict=True))
    adapter = "adapter" if any(probe.trained for probe in probes) else None
    answered_by = artifacts[0].path.name if artifacts else adapter
    documents.write(run.scores, replace(scores, probes=probes, answered_by=answered_by))
    return probes
