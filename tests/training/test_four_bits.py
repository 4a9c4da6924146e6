"""QLoRA on a CPU: NF4 by bitsandbytes, against plain PEFT on the dequantized weights; a run that is trained, stopped,
resumed and exported; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import one_layer
import pytest
import torch
from out_of_memory import steps_watched
from samples import random_examples
from series import Series, adapter, assert_same_run, document, losses

from fasttune.console import FasttuneError
from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import engine, four_bits, hub, packing
from fasttune.training import model as models

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="NF4 on a CPU")
LORA = LoraRecipe(r=8, alpha=16)
IN_4_BITS = "model.load_in_4bit=true"


def random_lora(model: Any) -> dict[str, torch.Tensor]:
    """LoRA weights that change what the model computes, put into it."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            scale = 0.02 if "lora_A" in name else 0.05
            weights[name] = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data.copy_(weights[name])
    return weights


def plain_model(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Transformers' and PEFT's own model in float32, its linear layers with the weights that NF4 stands for."""
    from bitsandbytes.functional import dequantize_4bit
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2ForCausalLM

    base = Qwen2ForCausalLM.from_pretrained(hub.TINY, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, target_modules=list(LORA.target_modules))
    plain = get_peft_model(base, config)
    modules, parameters = dict(plain.named_modules()), dict(plain.named_parameters())
    packed = [(n, one) for n, one in model.named_modules() if type(one).__name__ == "Linear4bit" and "base_layer" in n]
    assert len(packed) == 7 * model.config.num_hidden_layers
    for name, module in packed:
        modules[name].weight.data.copy_(dequantize_4bit(module.weight.data, module.weight.quant_state))
    for name, weight in weights.items():
        parameters[name].data.copy_(weight)
    return plain


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.grad.double() for name, one in model.named_parameters() if one.grad is not None}


@on_cpu
def test_it_computes_what_peft_computes_on_the_dequantized_weights() -> None:
    """Shared, packed and single rows: measured 7e-8 in the loss and 6e-7 in the gradient."""
    model = models.load_base(hub.TINY, ModelRecipe(base="builtin:tiny", load_in_4bit=True))
    model = models.add_lora(model, LORA, 1, checkpointing=False)
    plain = plain_model(model, random_lora(model))
    examples = random_examples(2, count=7)
    supervised = sum(end - start for one in examples for start, end in one.supervised)
    expected = 0.0
    for one in examples:
        ids = torch.tensor([one.tokens])
        logs = torch.log_softmax(plain(input_ids=ids).logits[0].double(), -1)
        wanted = [at for start, end in one.supervised for at in range(start, end)]
        loss = -logs[[at - 1 for at in wanted], ids[0, wanted]].sum() / supervised
        loss.backward()
        expected += loss.item()
    model.train()
    for budget, share in ((4096, True), (4096, False), (0, True)):
        model.zero_grad()
        total = 0.0
        for row in packing.plan_step(examples, range(len(examples)), budget, shared_prefix=share).rows:
            batch = engine.collate(row, examples)
            loss, _hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
            (loss / supervised).backward()
            total += loss.item() / supervised
        assert total == pytest.approx(expected, rel=1e-6)
        found, exact = gradients_of(model), gradients_of(plain)
        assert found.keys() == exact.keys()
        apart = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
        assert apart**0.5 < 1e-5 * sum(float(one.square().sum()) for one in exact.values()) ** 0.5


@on_cpu
def test_a_run_is_trained_stopped_resumed_and_exported(tmp_path: Path) -> None:
    """Bit for bit the run that was never stopped (E2), another one than in float32, and its file is checked."""
    settings = (IN_4_BITS, f"model.base={one_layer.FOLDER}", "train.max_steps=4", "train.save_steps=2")
    whole, stopped = Series.new(tmp_path / "whole"), Series.new(tmp_path / "stopped")
    whole.train(*settings)
    with steps_watched(dies_in=4):
        stopped.train(*settings, code=130)
    done = stopped.train(*settings)
    assert "resuming" in done.stderr
    assert_same_run(stopped.run(1), whole.run(1))
    wide = Series.new(tmp_path / "wide")
    wide.train(*settings[1:])
    assert adapter(wide.run(1)) != adapter(whole.run(1))
    assert losses(wide.run(1))[0] == pytest.approx(losses(whole.run(1))[0], rel=0.2)
    done = whole("export", "persona/001-fresh", "--gguf", "f16")
    (written,) = (whole.run(1) / "exports").glob("*.gguf")
    figures = document(Path(f"{written}".removesuffix(".gguf") + ".json"))["figures"]
    assert figures["type"] == "f16" and figures["kl"] < 1e-3 < figures["nf4_kl"] and figures["nf4_perplexity"] > 1
    assert document(whole.run(1) / "scores.json")["exports"] == [figures]
    assert "trained on the base in 4 bits (NF4), served on the one in 16 bits: KL " in done.stderr


def changed_config(folder: Path, **values: int) -> Path:
    config = json.loads((hub.TINY / "config.json").read_text(encoding="utf-8")) | values
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("values", "widths"),
    [({"intermediate_size": 800}, "800"), ({"hidden_size": 200, "intermediate_size": 800}, "200, 800")],
)
def test_rows_of_broken_blocks_are_refused(tmp_path: Path, values: dict[str, int], widths: str) -> None:
    with pytest.raises(FasttuneError) as caught:
        four_bits.require_whole_blocks(changed_config(tmp_path, **values))
    (finding,) = caught.value.findings
    assert finding.code == "base-not-for-4-bits" and widths in finding.what


def test_all_public_bases_are_made_of_whole_blocks() -> None:
    from fasttune.training.memory import public_size

    for name in ("0.5B", "1.5B", "3B", "7B"):
        size = public_size(f"Qwen/Qwen2.5-{name}-Instruct")
        assert size is not None
        assert not any(inputs % four_bits.BLOCK for inputs, _outputs in size.linear_shapes.values())
    four_bits.require_whole_blocks(hub.TINY)


@on_cpu
def test_16_bits_in_their_place_are_no_silent_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth loads the 16-bit weights where bitsandbytes does not work, and only prints it."""
    monkeypatch.setattr("unsloth_zoo.cpu.loader.cpu_bnb_4bit_supported", lambda: False)
    with pytest.raises(FasttuneError) as caught:
        models.load_base(one_layer.FOLDER, ModelRecipe(base=str(one_layer.FOLDER), load_in_4bit=True))
    assert caught.value.findings[0].code == "4-bits-not-available"
