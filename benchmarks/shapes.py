"""A base of Qwen2.5's shape with random weights: as fast as the real one, while its loss means nothing.

    python benchmarks/shapes.py 1.5b build/shapes/1.5b                 # tokenizer of the built-in base
    python benchmarks/shapes.py 0.5b OUT --tokenizer some/checkpoint   # or another one's

For machines without a network: 0.5b, 1.5b and 3b are written in bfloat16 (1, 3 and 6 GB); tiny is for tests.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

BUILT_IN = Path(__file__).parent.parent / "fasttune" / "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
# hidden, intermediate, layers, heads, key/value heads, vocabulary: the public Qwen2.5 configurations.
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 5120),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
    "3b": (2048, 11008, 36, 16, 2, 151936),
}


def make(shape: str, folder: Path, tokenizer: Path = BUILT_IN) -> Path:
    """Write the base with its tokenizer into `folder` unless it is there; returns the folder."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=loaded.bos_token_id,
        eos_token_id=loaded.eos_token_id,
        pad_token_id=loaded.pad_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(partial)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, partial / name)
    partial.rename(folder)
    return folder


def main() -> None:
    """Read the command line and make one shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=BUILT_IN)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print(make(options.shape, options.out, options.tokenizer))


if __name__ == "__main__":
    main()
