"""Probe answers: kept beside the run, from the file that is served and from the untrained base."""

from __future__ import annotations

import json

from conftest import REPOSITORY, Quickstart

from fasttune.data.tokenize import prompt_tokens
from fasttune.training import hub
from fasttune.training import model as models


def test_scores_hold_the_answers_of_base_and_file(quickstart: Quickstart) -> None:
    scores = json.loads((quickstart.folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["probes"] == quickstart.result["probes"]
    assert scores["answered_by"] == "quickstart-Q8_0.gguf"


def test_the_base_answers_are_the_bases_own(quickstart: Quickstart) -> None:
    """What a run wrote down with its adapter switched off is what plain transformers says."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = models.load_tokenizer(hub.TINY)
    base = AutoModelForCausalLM.from_pretrained(hub.TINY, dtype=torch.float32)
    first = json.loads((REPOSITORY / "data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    system = first["messages"][0]["content"]
    for probe in quickstart.result["probes"]:
        ids = torch.tensor([prompt_tokens(probe["question"], system, tokenizer)])
        output = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=256, do_sample=False)
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == probe["base"]
