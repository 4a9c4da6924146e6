"""The independent side of the export tests: plain transformers and PEFT, without fasttune and Unsloth.

    python tests/export/plain_peft.py TINY OUT

makes in OUT: adapter/ (rsLoRA with rank and alpha patterns, B not zero), untied/ (another Qwen2: float32 shards, an
output head of its own, rope_theta at the top level as transformers 4 wrote it), and expected.npz: ids of a chat, logits
of the base, of the adapter on the base and of the merged model, of untied/, and the merged model's greedy answer.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

CHAT = [{"role": "user", "content": "你好，请介绍一下你自己。Who are you? 🙂"}]


def main(tiny: Path, out: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    ids += tokenizer("今天天气很好。The quick brown fox; 1, 2, 3!\n", add_special_tokens=False)["input_ids"]
    found: dict[str, NDArray[Any]] = {"ids": np.array(ids)}
    found["base"] = logits(load(tiny), ids)
    make_adapter(tiny, out / "adapter")
    adapted = PeftModel.from_pretrained(load(tiny), out / "adapter")
    found["adapted"] = logits(adapted, ids)
    merged = adapted.merge_and_unload()
    found["merged"] = logits(merged, ids)
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    made = merged.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, repetition_penalty=1.0)
    found["prompt"], found["answer"] = np.array(prompt), made[0, len(prompt) :].numpy()
    found["untied"] = logits(make_untied(tiny, out / "untied"), ids)
    np.savez(out / "expected.npz", allow_pickle=False, **found)


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: torch.nn.Module, ids: list[int]) -> NDArray[Any]:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def make_adapter(tiny: Path, folder: Path) -> None:
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        use_rslora=True,
        rank_pattern={"layers.1.self_attn.q_proj": 4, "gate_proj": 16},
        alpha_pattern={"mlp.down_proj": 5},
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(load(tiny), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)


def make_untied(tiny: Path, folder: Path) -> torch.nn.Module:
    config = Qwen2Config(
        vocab_size=5200,  # more rows than tokens: [PADn]
        hidden_size=96,  # not a multiple of 256: K-quants fall back
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    model = Qwen2ForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.1)
    model.save_pretrained(folder, max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, folder)
    written = json.loads((folder / "config.json").read_text())
    written["rope_theta"] = written.pop("rope_parameters")["rope_theta"]
    del written["layer_types"]
    (folder / "config.json").write_text(json.dumps(written))
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
