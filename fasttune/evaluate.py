"""How good the result is: the probe questions answered by the file that will be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fasttune import runs
from fasttune.export import Artifact
from fasttune.export.llama import Sampling, answer, open_gguf
from fasttune.model import load_tokenizer
from fasttune.render import prompt_tokens
from fasttune.runs import Run


@dataclass(frozen=True)
class Probe:
    """One probe question with the answers of the untrained base and of what was trained."""

    question: str
    base: str
    trained: str


def probe(run: Run, base: Path, artifacts: Sequence[Artifact], max_new_tokens: int) -> tuple[Probe, ...]:
    """Ask the first GGUF file a run's probe questions (greedily); its answers go to scores.json beside the base's.

    Where no file was asked for, those that train.py has from the adapter stand.
    """
    scores = runs.read_json(run.scores)
    tokenizer = load_tokenizer(base)
    system = runs.read_json(run.plan)["system"]
    prompts = [prompt_tokens(asked["question"], system, tokenizer) for asked in scores["probes"]]
    trained = [asked.get("trained", "") for asked in scores["probes"]]
    if artifacts and prompts:
        with open_gguf(artifacts[0].path, max(map(len, prompts)) + max_new_tokens) as model:
            trained = [answer(model, prompt, Sampling(max_new_tokens)).strip() for prompt in prompts]
    probes = [
        Probe(asked["question"], asked["base"], said) for asked, said in zip(scores["probes"], trained, strict=True)
    ]
    answered_by = artifacts[0].path.name if artifacts else "adapter" if any(trained) else None
    runs.write_json(run.scores, scores | {"probes": [asdict(one) for one in probes], "answered_by": answered_by})
    return tuple(probes)
