"""How good the result is: the probe questions answered by the file that will be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.data.tokenize import prompt_tokens
from fasttune.export import Artifact
from fasttune.export.llama import Sampling, answer, open_gguf
from fasttune.runs import documents
from fasttune.runs.documents import Probe, Scores
from fasttune.runs.store import Run
from fasttune.training.model import load_tokenizer


def probe(run: Run, base: Path, artifacts: Sequence[Artifact], max_new_tokens: int) -> tuple[Probe, ...]:
    """Ask the first GGUF file a run's probe questions (greedy decoding); the answers go into scores.json.

    Where no file was asked for, the answers stand that training had from the adapter.
    """
    probes = documents.read_scores(run).probes
    if artifacts and probes:
        tokenizer, system = load_tokenizer(base), documents.read_plan(run).system
        prompts = [prompt_tokens(asked.question, system, tokenizer) for asked in probes]
        with open_gguf(artifacts[0].path, max(map(len, prompts)) + max_new_tokens) as model:
            answers = [answer(model, prompt, Sampling(max_new_tokens)).strip() for prompt in prompts]
        probes = tuple(replace(asked, trained=said) for asked, said in zip(probes, answers, strict=True))
    by_adapter = "adapter" if any(asked.trained for asked in probes) else None
    documents.write(run.scores, Scores(probes, artifacts[0].path.name if artifacts else by_adapter))
    return probes
