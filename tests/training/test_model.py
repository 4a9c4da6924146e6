"""Where a base is found, which device is used, and the layout handed to Unsloth's CUDA attention."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fasttune.console import FasttuneError
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import device, hub
from fasttune.training import model as models


def test_the_builtin_base_is_a_complete_checkpoint() -> None:
    folder = hub.locate(ModelRecipe(base="builtin:tiny"))
    assert hub.require_model_folder(folder) == folder
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000


@pytest.mark.parametrize(
    ("base", "code"),
    [
        ("./nowhere", "base-not-found"),
        ("D:\\models\\qwen", "base-not-found"),
        ("no-such-owner/no-such-model", "hub-unreachable"),
    ],
)
def test_a_base_that_is_not_there(base: str, code: str) -> None:
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base=base))
    (finding,) = caught.value.findings
    assert finding.code == code and finding.where == "model.base"


def test_an_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FasttuneError, match=r"tokenizer.json, \*.safetensors missing"):
        hub.locate(ModelRecipe(base=str(tmp_path)))


def test_modelscope_without_its_package_says_how_to_get_it() -> None:
    with pytest.raises(FasttuneError) as caught:
        hub.locate(ModelRecipe(base="Qwen/Qwen2.5-0.5B-Instruct", mirror="modelscope"))
    assert "pip install modelscope" in caught.value.findings[0].fix


def test_a_card_that_torch_cannot_drive_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine's card works")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA GeForce RTX 4060 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(FasttuneError, match="RTX 4060") as caught:
        device.device_type()
    assert caught.value.findings[0].code == "gpu-not-usable"
    monkeypatch.setenv("UNSLOTH_FORCE_CPU", "1")
    assert device.device_type() == "cpu"


CUDA_LAYOUT = """
import torch
from unsloth.utils.prefix_grouper_kernel import PrefixSegInfo
from fasttune.data.tokenize import Example
from fasttune.training import engine, model, packing

examples = [Example(str(n), (*range(100), 200 + n, 7, 8), ((101, 103),)) for n in range(4)]
examples.append(Example("alone", tuple(range(300, 310)), ((5, 10),)))
(row,) = packing.plan_step(examples, range(5), 4096).rows
batch = engine.collate(row, examples)
padded, layout = model.cuda_layout(batch)
segments = layout["prefix_seg_info"]
assert isinstance(segments, PrefixSegInfo)
assert padded.input_ids.shape == padded.position_ids.shape == (1, 128) and segments.T == 128
assert padded.input_ids[0, :122].tolist() == batch.input_ids[0].tolist()

plain = packing.plan_step(examples, range(5), 4096, shared_prefix=False).rows[0]
_batch, layout = model.cuda_layout(engine.collate(plain, examples))
assert layout["packed_seq_lengths"].tolist() == [103, 103, 103, 103, 10] and layout["packed_seq_lengths"].dtype == torch.int32
print("layout good")
"""


def test_the_layout_for_unsloths_cuda_attention() -> None:
    """Unsloth's GPU stack imports without a card under UNSLOTH_ALLOW_CPU; its own builder takes our groups."""
    done = subprocess.run(
        [sys.executable, "-c", "import os; os.environ['UNSLOTH_ALLOW_CPU'] = '1'\nimport unsloth\n" + CUDA_LAYOUT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "layout good" in done.stdout, done.stderr[-3000:]


SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
ALL = (*SOME, "k_proj", "o_proj", "gate_proj")


def peft_model(dropout: float = 0.0, targets: tuple[str, ...] = SOME):  # type: ignore[no-untyped-def]
    """A small Qwen2 with an adapter whose B is not zero, as PEFT builds it."""
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    lora = peft.LoraConfig(
        r=4, lora_alpha=12, lora_dropout=dropout, target_modules=list(targets),
        init_lora_weights=False,
    )  # fmt: skip
    return peft.get_peft_model(transformers.Qwen2ForCausalLM(config), lora)


def logits_and_gradients(net):  # type: ignore[no-untyped-def]
    """Of one pass over fixed tokens."""
    import torch

    torch.manual_seed(2)
    net.zero_grad()
    logits = net(torch.arange(1, 60)[None]).logits
    logits.logsumexp(-1).sum().backward()
    return [logits.detach()] + [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("targets", [SOME, ALL])  # all: the feed-forward is one function
def test_fast_layers_compute_what_the_plain_ones_compute(targets: tuple[str, ...]) -> None:
    net = peft_model(targets=targets)
    plain = logits_and_gradients(net)
    models.use_cpu_layers(net)
    fast = logits_and_gradients(net)
    assert len(fast) == 1 + 2 * 2 * len(targets)  # two layers, A and B
    for one, other in zip(fast, plain, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_fast_layers_know_when_the_adapter_is_off_merged_or_drops() -> None:
    import torch

    def logits():  # type: ignore[no-untyped-def]
        with torch.no_grad():
            return net(torch.arange(1, 60)[None]).logits

    net = peft_model(targets=ALL)
    tuned = logits()
    with net.disable_adapter():
        base = logits()
    models.use_cpu_layers(net)
    with net.disable_adapter():
        assert torch.allclose(logits(), base, atol=1e-5)
    net.merge_adapter()
    assert torch.allclose(logits(), tuned, atol=1e-5)
    assert not torch.allclose(base, tuned, atol=1e-2)

    dropping = peft_model(dropout=0.5, targets=ALL)
    plain = logits_and_gradients(dropping)
    models.use_cpu_layers(dropping)
    for one, other in zip(logits_and_gradients(dropping), plain, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
