"""The merged model as a Hugging Face folder, for use in other tools (`export.keep_merged`).

    merged/  model.safetensors in the base's own types (or shards of 5 GB with their index), config.json, tokenizer and
             template as trained, merged.json

The weights are streamed as into the GGUF file, and the folder appears whole or not at all. bfloat16 is rounded to the
nearest even value, as torch rounds.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.console import _
from fasttune.export import write
from fasttune.export.source_files import DTYPES, FloatArray, Tensor, stored_bytes
from fasttune.export.weights import Base, Loras, expected_tensors, merged_blocks
from fasttune.files import file_sha256, whole_folder, write_json
from fasttune.runs import documents
from fasttune.runs.documents import MergedDocument
from fasttune.training.progress import ByteLine

FOLDER, DOCUMENT = "merged", "merged.json"
SHARD_BYTES = 5 * 10**9  # as transformers has long divided its checkpoints
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
        write_weights(partial, base, loras)
        for source, names in ((base.folder, ("config.json", "generation_config.json")), (tokenizer, COPIED)):
            for name in names:
                if (source / name).is_file():
                    shutil.copyfile(source / name, partial / name)
        digests = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
        documents.write(partial / DOCUMENT, replace(document, sha256=digests))


def write_weights(folder: Path, base: Base, loras: Loras) -> None:
    """Write all weights of the merged model: model.safetensors, or shards of at most SHARD_BYTES with their index, as
    transformers names them."""
    shards = in_shards([base.tensors[name] for name in expected_tensors(base.shape)])
    with ByteLine(_("merged model"), merged_bytes(base)) as line:
        if len(shards) == 1:
            write_safetensors(folder / "model.safetensors", shards[0], loras, line)
            return
        weight_map: dict[str, str] = {}
        for number, tensors in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(folder / name, tensors, loras, line)
            weight_map |= {tensor.name: name for tensor in tensors}
    index = {"metadata": {"total_size": merged_bytes(base)}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def in_shards(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in files of at most SHARD_BYTES, in their order; a larger one has a file of its own."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(map(stored_bytes, shards[-1])) + stored_bytes(tensor) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def write_safetensors(file: Path, tensors: Sequence[Tensor], loras: Loras, line: ByteLine) -> None:
    """Write merged weights into one safetensors file."""
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
                write.check_finite(tensor.name, block, math.inf)
                line.advance(opened.write(encode(block, tensor.dtype)))


def merged_bytes(base: Base) -> int:
    """Bytes of the weights in the merged folder."""
    return sum(stored_bytes(base.tensors[name]) for name in expected_tensors(base.shape))


def encode(block: FloatArray, dtype: str) -> bytes:
    """The bytes of float32 values in a safetensors file of this type."""
    return write.encode(block, "BF16") if dtype == "BF16" else block.astype(DTYPES[dtype]).tobytes()
