"""The table of docs/export.md: what each quantization type keeps of an adapter on a base, with its size and time.

    python -m benchmarks.kept BASE_FOLDER ADAPTER_FOLDER RECIPE.toml SCRATCH_FOLDER [--imatrix] [TYPE …]

Measured are the held-out conversations of the recipe's data, as an export does it (export/kept.py). Prints a line of
JSON for each type.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fasttune.data.dataset import load_dataset
from fasttune.export import chatml, conversations, imatrix, kept, llama, quantize
from fasttune.export.adapter_reader import read_adapter
from fasttune.export.base_reader import read_base
from fasttune.export.vocabulary import read_vocabulary
from fasttune.export.write import WRITTEN_TYPES, Metadata, write_gguf
from fasttune.recipe.load import load_recipe

TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs", "q3_k_m", "q2_k")


def main(base_folder: Path, adapter: Path, recipe_file: Path, scratch: Path, *rest: str) -> None:
    """Write, measure and remove a file of each type."""
    types = [one for one in rest if not one.startswith("--")] or list(TYPES)
    base = read_base(base_folder, [])
    assert base is not None
    loras = read_adapter(adapter, base, [])
    tokenizer, vocabulary = chatml.load_tokenizer(base_folder), read_vocabulary(base_folder, base.shape.vocab_size, [])
    assert vocabulary is not None
    recipe = load_recipe(recipe_file, [])
    data = load_dataset(recipe.data, recipe.train.seed)
    measured = conversations.choose(data.held_out or data.train[::2], tokenizer, recipe.data.learn, base.shape)
    began = time.perf_counter()
    reference = kept.compute_reference(base, loras, measured)
    trained, untuned = kept.measure_reference(reference)
    assert untuned is not None
    learned = float(untuned.kl.mean())
    head = {"learned": learned, "tokens": len(untuned.kl), "conversations": len(measured),
            "perplexity": trained.perplexity, "base_perplexity": untuned.perplexity,
            "seconds": time.perf_counter() - began}  # fmt: skip
    print(json.dumps(head), flush=True)
    scratch.mkdir(parents=True, exist_ok=True)
    importance = scratch / "own.imatrix" if "--imatrix" in rest else None
    if importance is not None:
        began = time.perf_counter()
        chosen = conversations.choose(data.train[1::2], tokenizer, recipe.data.learn, base.shape)
        imatrix.compute(base, loras, chosen, importance)
        print(json.dumps({"imatrix": time.perf_counter() - began}), flush=True)
    f16 = scratch / "f16.gguf"
    metadata = Metadata("kept", "", str(tokenizer.chat_template))
    write_gguf(f16, base, loras, vocabulary, metadata, "F16")
    for name in types:
        began = time.perf_counter()
        path = f16 if name == "f16" else scratch / f"{name}.gguf"
        if name in WRITTEN_TYPES and name != "f16":
            write_gguf(path, base, loras, vocabulary, metadata, WRITTEN_TYPES[name])
        elif name != "f16":
            quantize.quantize(f16, path, name, importance)
        made = time.perf_counter() - began
        with llama.open_gguf(path, max(len(one.tokens) for one in measured)) as model:
            found = kept.measure_file(model, reference)
        kl = float(found.kl.mean())
        figures = {"type": name, "imatrix": importance is not None, "MB": round(path.stat().st_size / 1e6, 1),
                   "kl": kl, "kept": 1 - kl / learned, "perplexity": found.perplexity,
                   "top1": float(found.same_top.mean()), "types": quantize.stored(path).types, "made": made,
                   "measured": time.perf_counter() - began - made}  # fmt: skip
        print(json.dumps(figures), flush=True)
        if name != "f16":
            path.unlink()
    f16.unlink()


if __name__ == "__main__":
    base_, adapter_, recipe_, scratch_ = map(Path, sys.argv[1:5])
    main(base_, adapter_, recipe_, scratch_, *sys.argv[5:])
