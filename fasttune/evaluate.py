"""How good the result is: the probe questions answered by the file that will be served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fasttune import runs
from fasttune.export.llama import Sampling, answer, open_gguf
from fasttune.model import load_tokenizer
from fasttune.render import prompt_tokens
from fasttune.runs import Run
from fasttune.strategy import Plan


@dataclass(frozen=True)
class Probe:
    """One probe question with the untrained base's answer and the trained GGUF's."""

    question: str
    base: str
    trained: str


def probe(plan: Plan, run: Run, base: Path, gguf: Path) -> tuple[Probe, ...]:
    """Ask a GGUF file the run's probe questions (greedily) and keep its answers in scores.json beside the base's."""
    scores = runs.read_json(run.scores)
    tokenizer = load_tokenizer(base)
    probes = []
    with open_gguf(gguf, plan.recipe.export.num_ctx) as model:
        for asked in scores["probes"]:
            prompt = prompt_tokens(asked["question"], plan.system, tokenizer)
            trained = answer(model, prompt, Sampling(plan.recipe.probe.max_new_tokens)).strip()
            probes.append(Probe(asked["question"], asked["base"], trained))
    scores["probes"] = [{"question": p.question, "base": p.base, "trained": p.trained} for p in probes]
    scores["answered_by"] = gguf.name
    runs.write_json(run.scores, scores)
    return tuple(probes)
