"""On a GPU: packed attention by both kernels against a mask, and against Unsloth's attention through whole models; memory
that really runs out, rows sized by what the first one took. Skipped without a GPU."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from bench_matrix import script
from series import Series, document, history, losses

from fasttune.training import attention, attention_kernels, hub
from fasttune.training.attention import layout
from fasttune.training.prefix_check import TOLERANCE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

# Heads, heads of keys, width of a head: those of Qwen2.5 0.5B, 1.5B and 3B.
SHAPES = {"0.5B": (14, 2, 64), "1.5B": (12, 2, 128), "3B": (16, 2, 128)}
ROUNDING = TOLERANCE[torch.bfloat16]


def random_base(folder: Path, shape: str, layers: int = 2) -> Path:
    """A base with one size's attention, random weights, few layers, and the built-in tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    heads, key_heads, width = SHAPES[shape]
    tiny = Qwen2Config.from_pretrained(hub.TINY)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tiny.vocab_size, hidden_size=heads * width, intermediate_size=4 * heads * width,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=tiny.eos_token_id,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)  # fresh ones are zero, which would hide a mistake in them
    base.to(torch.bfloat16).save_pretrained(folder)
    for file in hub.TINY.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    return folder


LAYOUTS = {
    "one group": layout([(600, [40, 300, 1, 77])], []),
    "several groups": layout([(20, [11, 19]), (700, [13, 5, 2])], [9, 260]),
    "a prefix of one token": layout([(1, [2, 3])], [2]),
    "alone": layout([], [11, 290, 2]),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", ["FLASH", "EFFICIENT"])
def test_packed_attention_equals_the_masked_one(
    monkeypatch: pytest.MonkeyPatch, kernel: str, shape: str, name: str
) -> None:
    """Output and all three gradients in float16, relative to those in float64."""
    if kernel == "FLASH" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("flash kernels need compute capability 8.0")
    monkeypatch.setattr(attention_kernels, "kernel_for", lambda query: getattr(attention_kernels, kernel))
    torch.manual_seed(0)
    (heads, key_heads, width), where, gpu = SHAPES[shape], LAYOUTS[name], torch.device("cuda")
    shapes = [(count, where.own.queries, width) for count in (heads, key_heads, key_heads)]
    states = [torch.randn(one, dtype=torch.float16, device=gpu).transpose(0, 1).requires_grad_() for one in shapes]
    moved = where.with_tensors([one.to(gpu) for one in where.tensors()])
    out = attention.packed_attention(states[0], states[1], states[2], moved, 0.125)
    upstream = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, states, upstream)]
    exact = [one.detach().double().requires_grad_() for one in states]
    q, k, v = (one.transpose(0, 1)[None] for one in exact)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attention.dense_mask(where).to(gpu), scale=0.125, enable_gqa=True
    )[0].transpose(0, 1)
    expected = [plain, *torch.autograd.grad(plain, exact, upstream.double())]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() < 2e-3 * other.norm()


@pytest.mark.parametrize("load_in_4bit", [False, True], ids=["16 bit", "4 bit"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sharing_passes_its_check(tmp_path: Path, shape: str, load_in_4bit: bool) -> None:
    base = random_base(tmp_path / "base", shape)
    series = Series.new(tmp_path)
    done = series.train(
        "train.max_steps=1", f"model.base={base}", f"model.load_in_4bit={str(load_in_4bit).lower()}", "lora.r=8"
    )
    found = document(series.run(1) / "provenance.json")["sharing_check"]
    print(shape, load_in_4bit, found)  # for `pytest -s`: the figures that TOLERANCE is set by
    assert found is not None and found["loss"] < ROUNDING and found["gradient"] < ROUNDING
    assert "switched off" not in done.stderr
    line = history(series.run(1))[0]
    assert line["computed_tokens"] < line["num_tokens"]


def test_answers_are_those_of_the_trained_model(tmp_path: Path) -> None:
    """Generated in a model that has computed no row, and after its LoRA weights have changed."""
    errors = script("gpu_first").answer_error(random_base(tmp_path / "base", "0.5B"))["errors"]
    assert set(errors) == {"fresh", "changed"} and max(errors.values()) < ROUNDING


def test_trials_share_a_base(tmp_path: Path) -> None:
    """Three in turn: the last one's step is that on a base of its own, and the one before has left nothing in memory."""
    errors = script("gpu_first").trial_error(random_base(tmp_path / "base", "0.5B"))["errors"]
    assert max(errors.values()) < ROUNDING


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_packing_never_changes_the_run(tmp_path: Path, checkpointing: str) -> None:
    """E1 to the rounding of 16 bit: shared, packed without sharing, one sample a row."""
    ways = {"shared": (), "packed": ("train.shared_prefix=false",), "single": ("train.tokens_per_row=0",)}
    runs = {}
    for name, changes in ways.items():
        series = Series.new(tmp_path / name)
        series.train("train.max_steps=6", f"train.gradient_checkpointing={checkpointing}", *changes)
        runs[name] = series.run(1)
    for name in ("shared", "packed"):
        assert losses(runs[name]) == pytest.approx(losses(runs["single"]), rel=2e-2), name
        norms = [[line["grad_norm"] for line in history(run) if "loss" in line] for run in (runs[name], runs["single"])]
        assert norms[0] == pytest.approx(norms[1], rel=1e-1), name


def test_memory_really_runs_out(tmp_path: Path) -> None:
    """The process may use little of the GPU's memory: the step is planned again until it fits, and its losses are the same."""
    base = random_base(tmp_path / "base", "0.5B", layers=12)
    settings = (
        f"model.base={base}", "train.max_steps=2", "train.batch_size=10", "train.gradient_checkpointing=false",
        "train.tokens_per_row=100000", "train.shared_prefix=false", "train.learning_rate=1e-4",
    )  # fmt: skip
    plenty, little = Series.new(tmp_path / "plenty"), Series.new(tmp_path / "little")
    for series in (plenty, little):
        lines = (series.folder / "train.jsonl").read_text(encoding="utf-8")
        (series.folder / "train.jsonl").write_text(lines.replace("说话短。", "说话短。" * 200), encoding="utf-8")
    plenty.train(*settings)
    peak = max(line["memory_gib"] for line in history(plenty.run(1)))
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() / 2**30
    whole = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction((held + (peak - held) * 0.6) / whole)
    try:
        done = little.train(*settings)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert re.search(r"step 1: out of memory in a row of \d+ tokens; packing budget now ", done.stderr)
    assert losses(little.run(1)) == pytest.approx(losses(plenty.run(1)), rel=2e-2)


def test_rows_are_sized_by_the_first_step(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    lines = (series.folder / "train.jsonl").read_text(encoding="utf-8")
    (series.folder / "train.jsonl").write_text(lines.replace("说话短。", "说话短。" * 200), encoding="utf-8")
    series.train("train.max_steps=2", "train.batch_size=10", "train.shared_prefix=false")
    found = document(series.run(1) / "provenance.json")
    assert found["rows_measured"]["step"] == 2 and found["rows_measured"]["tokens_per_row"] >= 256


def test_a_stopped_run_resumes(tmp_path: Path) -> None:
    series = Series.new(tmp_path)
    run = series.stop("train.epochs=10", "train.save_steps=100", lines=3)
    done = series.train("train.epochs=10", "train.save_steps=100")
    assert "resuming at step" in done.stderr and len(losses(run)) == 30
