"""Exports of random weights in the widths of Qwen2.5-1.5B and 3B, with few layers: written, quantized, loaded.

    python benchmarks/export_shapes.py [--layers 2]

Prints, for each, seconds to write F16 and to quantize to Q4_K_M, sizes, and the peak memory of this process and of the
quantizer. The layers are alike, so time and size of a whole model follow by their number; memory does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from fasttune.export import chatml, llama, quantize
from fasttune.export.base_reader import read_base, shape_of
from fasttune.export.vocabulary import read_vocabulary
from fasttune.export.weights import expected_tensors
from fasttune.export.write import Metadata, write_gguf
from fasttune.training.hub import TINY

# Qwen/Qwen2.5-*-Instruct/config.json
SHAPES = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2},
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2},
}
VOCABULARY = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=2)
    layers = parser.parse_args().layers
    for name, numbers in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"shape": name, "layers": layers, **measure(Path(folder), numbers, layers)}))


def measure(folder: Path, numbers: dict[str, int], layers: int) -> dict[str, float]:
    """Export a random base of this shape; the figures."""
    make_base(folder, numbers, layers)
    base = read_base(folder, [])
    vocabulary = read_vocabulary(TINY, VOCABULARY, [])
    assert base is not None and vocabulary is not None
    template = chatml.PLAIN
    f16, q4 = folder / "f16.gguf", folder / "q4.gguf"
    began = time.perf_counter()
    write_gguf(f16, base, {}, vocabulary, Metadata("shape", "shape/001-fresh", template), "F16")
    written = time.perf_counter() - began
    quantize.quantize(f16, q4, "q4_k_m")
    quantized = time.perf_counter() - began - written
    with llama.open_gguf(q4, 64) as model:
        logits = model.logits([1, 2, 3], last=3)
    assert logits.shape == (3, VOCABULARY) and np.isfinite(logits).all()
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "write_seconds": round(written, 1), "quantize_seconds": round(quantized, 1), "f16_mb": f16.stat().st_size / 1e6,
        "q4_k_m_mb": q4.stat().st_size / 1e6, "peak_mib": round(peaks[0]), "quantizer_peak_mib": round(peaks[1]),
    }  # fmt: skip


def make_base(folder: Path, numbers: dict[str, int], layers: int) -> None:
    """A folder with config.json and random bfloat16 weights."""
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    config |= {**numbers, "num_hidden_layers": layers, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config | {"layer_types": ["full_attention"] * layers}))

    random, end = np.random.default_rng(0), 0
    header: dict[str, dict[str, object]] = {}
    sizes = expected_tensors(shape_of(config))
    for name, size in sizes.items():
        count = 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in sizes.values():
            for _row in range(0, size[0], 4096):
                rows = min(4096, size[0] - _row)
                values = random.standard_normal((rows, *size[1:]), dtype=np.float32) * np.float32(0.02)
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


if __name__ == "__main__":
    main()
