"""Makes a copy of a base whose weights no longer lie on a quantization grid: noise of half a step on every matrix.

A checkpoint that was dequantized from a GGUF file has 16-bit weights that only take the values of that file's types.
Quantizing it again is free, and a small adapter is rounded away: a calibration on such a base alone says nothing about
ordinary ones. The step is measured in each block of 32 weights, as the smallest distance of two different ones.

    python -m benchmarks.off_grid BASE_FOLDER NEW_FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

BLOCK = 32  # weights that share a scale in Q4_0 to Q8_0; K-quants have blocks of 16 or 32
ROWS = 4096  # of a matrix at once


def noisy(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Weights (rows, columns) with uniform noise of half a step of their block to both sides."""
    blocks = values.reshape(-1, BLOCK)
    rising = np.sort(blocks, axis=1)
    gaps = np.diff(rising, axis=1)
    span = rising[:, -1:] - rising[:, :1]
    step = np.where(gaps > 1e-3 * span, gaps, np.inf).min(axis=1, keepdims=True)  # below: rounding to 16 bits
    step = np.where(np.isfinite(step), step, 0)
    return (blocks + random.uniform(-0.5, 0.5, blocks.shape) * step).reshape(values.shape).astype(np.float32)


def main(base: Path, folder: Path) -> None:
    """Copy the base; every matrix gets noise, in its own number type."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
            continue
        tensors = {}
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, a safe_open is no dict
                tensor = opened.get_tensor(name)
                if tensor.ndim == 2:
                    parts = [noisy(part.float().numpy(), random) for part in tensor.split(ROWS)]
                    tensor = torch.cat([torch.from_numpy(part) for part in parts]).to(tensor.dtype)
                tensors[name] = tensor.contiguous()
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    print(json.dumps({"base": str(folder), "seed": 0}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
