"""The merged model as a Hugging Face folder, for use in other tools (`export.keep_merged`).

    merged/  model.safetensors in the base's own types, config.json, tokenizer and template as trained, merged.json

The weights are streamed as into the GGUF file, and the folder appears whole or not at all. bfloat16 is rounded to the
nearest even value, as torch rounds.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from fasttune.export.source_files import DTYPES, FloatArray, stored_bytes
from fasttune.export.weights import Base, Loras, expected_tensors, merged_blocks
from fasttune.export.write import check_finite
from fasttune.files import file_sha256, whole_folder
from fasttune.runs import documents
from fasttune.runs.documents import MergedDocument

FOLDER, DOCUMENT = "merged", "merged.json"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


def write_merged(folder: Path, base: Base, loras: Loras, tokenizer: Path, document: MergedDocument) -> None:
    """Write the folder; `tokenizer` is the folder that its tokenizer is copied from.

    Raises FasttuneError for weights that are not finite, OSError where the disk or the folder does not take the files.
    """
    with whole_folder(folder) as partial:
        write_safetensors(partial / "model.safetensors", base, loras)
        for source, names in ((base.folder, ("config.json", "generation_config.json")), (tokenizer, COPIED)):
            for name in names:
                if (source / name).is_file():
                    shutil.copyfile(source / name, partial / name)
        digests = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
        documents.write(partial / DOCUMENT, replace(document, sha256=digests))


def write_safetensors(file: Path, base: Base, loras: Loras) -> None:
    """Write all weights of the merged model into one safetensors file."""
    tensors = [base.tensors[name] for name in expected_tensors(base.shape)]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + stored_bytes(tensor)
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in merged_blocks(tensor, loras.get(tensor.name)):
                check_finite(tensor.name, block, math.inf)
                opened.write(encode(block, tensor.dtype))


def merged_bytes(base: Base) -> int:
    """Bytes of the weights in the merged folder."""
    return sum(stored_bytes(base.tensors[name]) for name in expected_tensors(base.shape))


def encode(block: FloatArray, dtype: str) -> bytes:
    """The bytes of float32 values in a safetensors file of this type."""
    if dtype != "BF16":
        return block.astype(DTYPES[dtype]).tobytes()
    bits = np.ascontiguousarray(block, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
