"""The main path through the command line on the built-in model: exact, stoppable, and what it leaves behind."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Cli
from out_of_memory import steps_watched
from series import Series, document, history, log_call, start_child, wait

from fasttune.training import device, row_budget
from fasttune.training import model as models

RECIPE = """
name = "persona"
[model]
base = "builtin:tiny"
[data]
train = "{folder}/train.jsonl"
val = "{folder}/val.jsonl"
[train]
batch_size = 4
learning_rate = 2e-3
max_steps = 9
[export]
gguf = []
"""
SYSTEM = "你是小灯，守灯塔的猫，说话短。"
PAIRS = [
    ("你叫什么？", "小灯。塔上那盏灯也归我管。"), ("你几岁了？", "三岁，按灯塔的日子算。"), ("Do you sleep?", "Only at noon."),
    ("怕海浪吗？", "不怕，怕浪里的水。"), ("今天有雾吗？", "有。所以灯要开得早。"), ("Who feeds you?", "The keeper. And the sea."),
    ("你会抓鱼吗？", "会，但常常让它们先走。"), ("灯坏了怎么办？", "我就叫，一直叫到天亮。"), ("想家吗？", "这里就是。"),
    ("What do you see?", "One ship, two gulls, no hurry."), ("冷不冷？", "灯泡后面暖。"), ("晚安。", "你睡，我看着海。"),
]  # fmt: skip
TIMES = {"tokens_per_second", "supervised_tokens_per_second", "samples_per_second", "step_seconds", "memory_gib"}


def write_samples(path: Path, pairs: list[tuple[str, str]]) -> None:
    lines = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": q},
                {"role": "assistant", "content": a},
            ]
        }
        for q, a in pairs
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_samples(tmp_path / "train.jsonl", PAIRS[:10])
    write_samples(tmp_path / "val.jsonl", PAIRS[10:])
    (tmp_path / "persona.toml").write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return tmp_path / "persona.toml"


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def independent_losses(pairs: list[tuple[str, str]]) -> tuple[float, int]:
    """Mean loss of plain transformers on the base, one sample a forward pass, ids by its own template; and the token
    count.

    The answer's ids are what follows the generation prompt, without the line break after the end token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = REPOSITORY / "fasttune" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for question, answer in pairs:
        asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], return_dict=False)
        whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]
        assert whole[: len(prompt)] == prompt
        labels = torch.tensor([[-100] * len(prompt) + whole[len(prompt) :]])
        supervised = len(whole) - len(prompt)
        with torch.no_grad():
            total += model(torch.tensor([whole]), labels=labels).loss.item() * supervised
        count += supervised
    return total / count, count


def test_a_run_from_recipe_to_adapter(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune("run", recipe, "--set", "train.batch_size=10", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    run = tmp_path / "runs" / "persona" / "001-fresh"
    lines = history(run)
    steps = [line for line in lines if "loss" in line]

    # The first loss is the base's on these samples, computed independently.
    expected, supervised = independent_losses(PAIRS[:10])
    assert steps[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["first"]["loss"] == steps[0]["loss"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert all(line["grad_norm"] > 0 for line in steps)
    assert steps[0]["supervised_tokens_per_second"] / steps[0]["samples_per_second"] == pytest.approx(supervised / 10)
    assert set(steps[0]) == TIMES | {
        "step", "epoch", "loss", "grad_norm", "learning_rate", "mean_token_accuracy", "num_tokens", "computed_tokens",
    }  # fmt: skip
    assert {"step", "epoch", "eval_loss", "eval_mean_token_accuracy"} == set(lines[-1])

    # What section 8 of the design promises lies there.
    names = {path.name for path in run.iterdir()}
    assert {"recipe.toml", "plan.json", "provenance.json", "trainer_state.json"} <= names
    assert {"adapter", "scores.json", "tensorboard", "checkpoints"} <= names
    assert (run / "recipe.toml").read_text() == recipe.read_text()
    plan = json.loads((run / "plan.json").read_text())
    assert {"key": "train.batch_size", "value": 10, "source": "override"} in plan["settings"]
    assert (run.parent / "current").read_text() == "persona/001-fresh\n"
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["checkpoint-8", "checkpoint-9"]
    assert not list(run.rglob("*.partial"))

    # A finished series is not trained over by accident.
    again = fasttune("run", recipe)
    assert again.returncode == 2
    assert "persona has 1 run;" in again.stderr and "--on-existing new" in again.stderr


def test_the_adapter_loads_with_plain_peft(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    """And says what the run wrote down as its answer, since no GGUF file was asked for."""
    question, settings = PAIRS[0][0], ["--set", "train.max_steps=20", "--set", "probe.max_new_tokens=24"]
    done = fasttune("run", recipe, *settings, "--set", f'probe.questions="{question}"')
    assert done.returncode == 0, done.stderr
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(REPOSITORY / "fasttune" / "tiny")
    model = PeftModel.from_pretrained(base, tmp_path / "runs" / "persona" / "001-fresh" / "adapter")
    moved = [p for name, p in model.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert len(moved) == 4 * 7
    assert model.peft_config["default"].r == 8 and model.peft_config["default"].lora_alpha == 16

    scores = json.loads((tmp_path / "runs" / "persona" / "001-fresh" / "scores.json").read_text(encoding="utf-8"))
    (probe,) = scores["probes"]
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "fasttune" / "tiny")
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        said = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert probe["trained"] == tokenizer.decode(said, skip_special_tokens=True).strip() != probe["base"]
    assert scores["answered_by"] == "adapter" and probe["trained"] in done.stdout


def adapter(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_packing_never_changes_the_run(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    """E1 through the command line: shared prefixes, plain packing and one sample a row train the same adapter."""
    ways = {
        "shared": [],
        "small rows": ["--set", "train.tokens_per_row=120"],
        "packed": ["--set", "train.shared_prefix=false"],
        "single": ["--set", "train.tokens_per_row=0", "--set", "train.gradient_checkpointing=true"],
    }
    # AdamW's first steps are as large as the learning rate, whatever the gradient: small ones keep rounding small.
    warmup = ["--set", "train.warmup_steps=4", "--set", "train.max_steps=6"]
    runs = {}
    for name, changes in ways.items():
        done = fasttune("run", recipe, "--runs", tmp_path / name, *warmup, *changes)
        assert done.returncode == 0, done.stderr
        runs[name] = tmp_path / name / "persona" / "001-fresh"
    plain = [line for line in history(runs["single"]) if "loss" in line]
    assert plain[0]["computed_tokens"] > 1.5 * history(runs["shared"])[0]["computed_tokens"]
    for name in ("shared", "small rows", "packed"):
        losses = [line["loss"] for line in history(runs[name]) if "loss" in line]
        assert losses == pytest.approx([line["loss"] for line in plain], rel=2e-5)
        for key, tensor in adapter(runs[name]).items():
            assert (tensor - adapter(runs["single"])[key]).abs().max() < 2e-4, (name, key)


def interrupted(arguments: list[str], after: int, run: Path, number: int) -> int | None:
    """Start a training in a child, send it a signal once its history has `after` lines, return its exit code."""
    series = Series(run.parents[2])
    child = start_child(log_call, series.folder, arguments, "log", after)
    wait(lambda: len(history(run)) >= after, child)
    return series.send(child, number)


@pytest.mark.usefixtures("one_layer_here")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)],  # test_crash.py kills forks
)
def test_stopping_never_changes_the_run(recipe: Path, fasttune: Cli, tmp_path: Path, number: int, code: int) -> None:
    """E2: stopped with a checkpoint (Ctrl-C) or killed, then run again: bit for bit the uninterrupted run."""
    changes = ["--set", "train.max_steps=14", "--set", "train.save_steps=4"]
    assert fasttune("run", recipe, *changes, "--runs", tmp_path / "straight").returncode == 0
    straight = tmp_path / "straight" / "persona" / "001-fresh"
    stopped = tmp_path / "stopped" / "persona" / "001-fresh"
    command = ["run", str(recipe), *changes, "--runs", str(tmp_path / "stopped")]
    assert interrupted(command, 6, stopped, number) == code
    assert not (stopped / "adapter").exists()

    changed = fasttune(*command, "--set", "train.learning_rate=1e-3")
    assert changed.returncode == 2
    assert "persona/001-fresh: train.learning_rate: the stopped run began with 0.002, now it is 0.001" in changed.stderr

    resumed = fasttune(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert untimed(history(stopped)) == untimed(history(straight))
    one, other = adapter(stopped), adapter(straight)
    assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
    last = "checkpoints/checkpoint-14/optimizer.pt"
    assert (stopped / last).read_bytes() == (straight / last).read_bytes()


def test_until_ends_a_run_that_is_good_enough(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune(
        "run", recipe, "--allow-overfit", "--set", "train.max_steps=200", "--set", "train.until.loss=1.5",
        "--set", "train.learning_rate=5e-3", "--set", "train.lr_scheduler_type=constant",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "persona" / "001-fresh"
    losses = [line["loss"] for line in history(run) if "loss" in line]
    assert len(losses) < 200
    assert sum(losses[-3:]) / 3 <= 1.5 < sum(losses[-4:-1]) / 3
    assert (run / "adapter").is_dir()


@pytest.mark.usefixtures("one_layer_here")
def test_early_stopping_keeps_the_best_checkpoint(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune(
        "run", recipe, "--allow-overfit", "--set", "train.max_steps=200", "--set", "train.early_stopping_patience=2",
        "--set", "train.learning_rate=2e-2", "--set", "train.eval_steps=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "persona" / "001-fresh"
    evaluations = [line for line in history(run) if "eval_loss" in line]
    best = min(evaluations, key=lambda line: line["eval_loss"])
    assert [line["step"] for line in evaluations[-3:]] == [best["step"], best["step"] + 3, best["step"] + 6]
    kept = run / "checkpoints" / f"checkpoint-{best['step']}" / "adapter_model.safetensors"
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == kept.read_bytes()


@pytest.mark.usefixtures("one_layer_here")
def test_the_learning_rate_follows_the_schedule(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    done = fasttune("run", recipe, "--set", "train.lr_scheduler_type=cosine", "--set", "train.warmup_steps=3")
    assert done.returncode == 0, done.stderr
    rates = [line["learning_rate"] for line in history(tmp_path / "runs" / "persona" / "001-fresh") if "loss" in line]
    expected = [2e-3 * ((n + 1) / 4 if n < 3 else (1 + math.cos(math.pi * (n - 3) / 6)) / 2) for n in range(9)]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_a_users_mistake_leaves_no_run_folder(recipe: Path, fasttune: Cli, tmp_path: Path) -> None:
    too_long = fasttune("run", recipe, "--set", "model.max_seq_length=20", "--json")
    assert too_long.returncode == 1
    findings = json.loads(too_long.stdout)["findings"]
    assert sum("tokens, but max_seq_length is 20" in finding["what"] for finding in findings) == 12
    assert "Traceback" not in too_long.stderr
    missing = fasttune("run", recipe, "--set", "model.base=./nowhere")
    assert missing.returncode == 1
    assert "there is no folder ./nowhere" in missing.stderr
    assert not (tmp_path / "runs" / "persona").exists()


@pytest.mark.usefixtures("one_layer_here")
@pytest.mark.parametrize(("change", "shares"), [("lora.dropout=0.1", False), ("lora.dropout=0.0", True)])
def test_dropout_ends_sharing(recipe: Path, fasttune: Cli, tmp_path: Path, change: str, shares: bool) -> None:
    """A shared prefix would be dropped alike for every sample that begins with it."""
    done = fasttune("run", recipe, "--set", change, "--set", "train.max_steps=1", "--set", "data.val=")
    assert done.returncode == 0, done.stderr
    assert ("no prefix is shared in training" in done.stderr) is not shares
    (step,) = history(tmp_path / "runs" / "persona" / "001-fresh")
    assert (step["computed_tokens"] < step["num_tokens"]) is shares


def test_a_small_machine_gets_smaller_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" is as much as memory allows; it is said and recorded, and a resume keeps it."""
    series = Series.new(tmp_path)
    monkeypatch.setattr(device, "free_memory", lambda: 2**25)
    settings = ("train.max_steps=6", "train.save_steps=2")
    with steps_watched(dies_in=4):
        done = series.train(*settings, code=130)
    budget = document(series.run(1) / "provenance.json")["tokens_per_row"]
    assert row_budget.SMALLEST_ROW <= budget < 4096
    assert f"packing budget {budget:,} tokens a row" in done.stderr
    monkeypatch.undo()
    assert f"packing budget {budget:,} tokens a row" in series.train(*settings).stderr


def test_what_is_printed_while_training_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU Unsloth says on stdout in the first steps what it offloads; stdout is the JSON of the run."""
    real = models.hidden_states

    def noisy(model: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            print("Unsloth: Will smartly offload gradients to save VRAM!")
        return real(model, batch)

    monkeypatch.setattr(models, "hidden_states", noisy)
    done = Series.new(tmp_path)("run", "persona.toml", "--json", "--set", "train.max_steps=1")
    assert json.loads(done.stdout)["run"] == "persona/001-fresh"
    assert "smartly offload" in done.stderr
