"""The keys at the head of a GGUF file, read without llama.cpp and without its tensors: for `fasttune diagnose`, which
loads no model.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, two counts, then keys
with their values, all little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value by its type
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)  # those that count by 64 bits
CHAT_TEMPLATE = "tokenizer.chat_template"


def chat_template(path: Path) -> str | None:
    """The chat template in a GGUF file, "" where it has none; None for a file that is no GGUF, or a damaged one."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return text_of(data, CHAT_TEMPLATE)
    except (OSError, ValueError, struct.error):  # no such file; an empty one; one that ends too early
        return None


def text_of(data: mmap.mmap, key: str) -> str:
    """The text of a key, "" where it is missing or holds something else. Raises ValueError and struct.error for what is
    no GGUF."""
    magic, version, _tensors, keys = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in VERSIONS:
        raise ValueError("no GGUF file")
    at = struct.calcsize("<4sIQQ")
    for _number in range(keys):
        name, at = text_at(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        if name == key:
            return text_at(data, at + 4)[0] if kind == STRING else ""
        at = after_value(data, at + 4, kind)
    return ""


def text_at(data: mmap.mmap, at: int) -> tuple[str, int]:
    """The text at a position, and the position after it."""
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise ValueError("a text ends beyond the file")
    return data[at + 8 : end].decode("utf-8", "replace"), end


def after_value(data: mmap.mmap, at: int, kind: int) -> int:
    """The position after a value of a type, arrays of texts included."""
    if kind == STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != ARRAY:
        if kind not in SIZES:
            raise ValueError("an unknown type")
        return at + SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in SIZES:
        return at + SIZES[inner] * int(count)
    for _number in range(count):
        at = after_value(data, at, inner)
    return at
