"""A run with everything that a page can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.runs import documents
from fasttune.runs.documents import Continuation, Probe, Scores
from fasttune.runs.outcomes import ArmFacts, FactResult, FactScores, HeldOutLosses, RuleResult, SampleLoss
from fasttune.runs.store import Run


def whole_run(root: Path, text: str = "小灯") -> Run:
    """A run with everything that a page can show; `text` stands wherever a stranger's text can."""
    first = write_run(root, losses=(4.0, 3.0), held_out=(3.9, 3.2))
    run = write_run(
        root, "incremental", parent=first, start="checkpoint", losses=(3.0, 2.0, 1.5), held_out=(3.1, 2.9, 3.0)
    )
    documents.write(run.plan, replace(documents.read_plan(run), start_step=2))
    documents.update_provenance(
        run,
        continuations=(Continuation("runs/persona/001-fresh/checkpoints/checkpoint-2", 2.9512, 2.9512, 2, 2e-4, 1.9e-4),),
        command=("run", text), platform=text,
    )  # fmt: skip
    write_epochs(run, (1, 2, 3), (3.1, 2.9, 3.0), steps_per_epoch=1)
    arms = {"base": ArmFacts(0, 1, 0, 0.0, 0), "tuned+system": ArmFacts(1, 0, 0, 1.0, 1)}
    fact = FactResult("cat", text, "data", (text,), {"base": "lost", "tuned+system": "kept"}, {})
    rule = RuleResult("ai", text, {"base": (), "tuned+system": (text,)})
    before = documents.read_scores(run)
    digest = documents.read(run.adapter / documents.MANIFEST, documents.Manifest).sha256["adapter_model.safetensors"]
    losses = HeldOutLosses(digest, (SampleLoss(f"{text}:7", 4.5, 5.0), SampleLoss("val.jsonl:3", 1.0)))
    scores = Scores(
        (Probe(text, f"base {text}", f"trained {text}"),), "persona-Q8_0.gguf",
        FactScores(text, "0" * 64, 64, arms, (fact,), (rule,)), before.epochs, held_out=losses,
    )  # fmt: skip
    documents.write(run.scores, scores)
    return run
