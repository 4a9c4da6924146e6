"""Recipes for tests: a minimal one, one with every setting, the broken ones; and loading or refusing a text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fasttune.console import Finding, UsageError
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BROKEN", "EXPECTED", "FULL", "MINIMAL", "refused", "tomllib", "written"]

BROKEN = Path(__file__).parent / "recipe" / "broken_recipes"
EXPECTED = tomllib.loads((BROKEN / "expected.toml").read_text(encoding="utf-8"))
MINIMAL = 'name = "linzhi"\nmodel.base = "builtin:tiny"\ndata.train = "train.jsonl"\n'
FULL = """\
name     = "林芝_2.5-a"
strategy = "custom"
[model]
base = "Qwen/Qwen2.5-0.5B-Instruct"
load_in_4bit = true
max_seq_length = 1024
dtype = "float32"
revision = "main"
mirror = "modelscope"
[data]
train = ["a.jsonl", "b.jsonl"]
val = 0.1
system = ""
system_facts = "facts.toml"
learn = "all"
replay = 0.05
[lora]
r = 16
alpha = 20
dropout = 0.1
target_modules = ["q_proj", "v_proj"]
[train]
epochs = 2
max_steps = 10
learning_rate = 1e-4
batch_size = 4
lr_scheduler_type = "cosine"
warmup_steps = 3
weight_decay = 0.01
max_grad_norm = 0
optim = "adamw_8bit"
seed = 0
tokens_per_row = 4096
shared_prefix = false
gradient_checkpointing = true
cuda_graphs = "auto"
logging_steps = 5
eval_steps = 7
save_steps = 8
save_total_limit = 9
keep_epochs = true
until = { loss = 0.3, token_accuracy = 0.98 }
early_stopping_patience = 2
report_to = "none"
[continue]
parent = "linzhi/001-fresh"
start = "adapter"
add_epochs = 1.5
[export]
gguf = []
ollama = "linzhi"
num_ctx = 2048
prompt = "facts"
temperature = 0.3
top_k = 40
top_p = 0.9
repeat_penalty = 1.05
num_predict = 500
keep_merged = true
keep = 0.8
imatrix = "none"
[probe]
questions = ["你是谁？"]
max_new_tokens = 64
[facts]
file = "facts.toml"
"""


def written(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "linzhi.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def refused(folder: Path, text: str, *overrides: str) -> tuple[Finding, ...]:
    with pytest.raises(UsageError) as caught:
        written(folder, text, *overrides)
    assert caught.value.exit_code == 2
    return caught.value.findings
