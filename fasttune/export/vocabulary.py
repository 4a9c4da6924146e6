"""A Hugging Face tokenizer.json as llama.cpp needs it: tokens, their types, merges and special ids.

llama.cpp has its own implementation of byte-level BPE and of Qwen2's pre-tokenizer; it only needs the lists. verify.py
measures whether both give a text the same ids; what can't work is a finding here.

Token types (gguf.TokenType): plain vocabulary 1, special tokens 3, other added tokens 4, and `[PADn]` of type 5 for
every row of the embedding beyond the last token. As llama.cpp's convert_hf_to_gguf.py does it, with one difference: the
end token is always `<|im_end|>`, with which the chat template ends a turn, and not the one in tokenizer_config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.console import Finding, _, ngettext
from fasttune.export.source_files import read_json_object

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
TURN_START, TURN_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# Qwen/Qwen2.5-*/tokenizer.json; llama.cpp has the same rule under the name "qwen2" (src/llama-vocab.cpp).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with their types, merges in order ("a b"), and the ids of the special tokens."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int
    pad: int


def read_vocabulary(folder: Path, rows: int, findings: list[Finding]) -> Vocabulary | None:
    """The vocabulary of a tokenizer folder for an embedding of `rows` rows; None, and findings, if it can't be used."""
    file = folder / "tokenizer.json"
    document = read_json_object(file, "tokenizer-unreadable", findings)
    if document is None:
        return None
    reasons = [*unsupported_model(document), *unsupported_pre_tokenizer(document.get("pre_tokenizer"))]
    added = {entry["id"]: entry for entry in document.get("added_tokens") or []}
    plain: dict[str, int] = document.get("model", {}).get("vocab") or {}
    last = max([*plain.values(), *added], default=-1)
    if last >= rows:
        reasons.append(_("its last token has id {last}, the embedding has {rows} rows", last=last, rows=rows))
    ids = {entry["content"]: number for number, entry in added.items()}
    for token in (TURN_START, TURN_END):
        if token not in ids:
            reasons.append(_("{token} is not an added token: it would be tokenized as plain text", token=token))
    findings += [Finding("tokenizer-unsupported", "error", str(file), what) for what in reasons]
    if reasons:
        return None
    warn_of_lost_tokens(file, plain, ids, findings)
    tokens, types = tokens_by_id(plain, added, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    end_of_text = ids.get(END_OF_TEXT, ids[TURN_END])
    return Vocabulary(tokens, types, merges, bos=end_of_text, eos=ids[TURN_END], pad=end_of_text)


def unsupported_model(document: dict[str, Any]) -> list[str]:
    """Why llama.cpp's byte-level BPE would not do what this tokenizer's model says; empty where it would."""
    model = document.get("model") or {}
    if model.get("type") != "BPE" or not model.get("merges"):
        return [_("it is not a byte-level BPE with merges")]
    present = [key for key in ("ignore_merges", "byte_fallback", "dropout", "unk_token") if model.get(key)]
    return [_("{key} is set, which llama.cpp doesn't know for Qwen2", key=key) for key in present]


def unsupported_pre_tokenizer(pre_tokenizer: dict[str, Any] | None) -> list[str]:
    """Why llama.cpp would split text otherwise before BPE; empty where the rule is Qwen2's."""
    parts = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    rules = [part.get("pattern", {}).get("Regex") for part in parts if part.get("type") == "Split"]
    byte_level = [part for part in parts if part.get("type") == "ByteLevel"]
    if rules != [QWEN2_SPLIT] or len(byte_level) != 1 or byte_level[0].get("add_prefix_space"):
        return [_("it doesn't split text as Qwen2 does; llama.cpp would give it other tokens")]
    return []


def warn_of_lost_tokens(file: Path, plain: dict[str, int], added: dict[str, int], findings: list[Finding]) -> None:
    """Warn of special tokens in the plain vocabulary, as in a tokenizer rebuilt from a GGUF: they are text there."""
    lost = sorted(token for token in plain if token.startswith("<|") and token.endswith("|>") and token not in added)
    if lost:
        what = ngettext("{n} special token is plain text: {names}", "{n} special tokens are plain text: {names}",
                        len(lost), names=", ".join(lost[:3]))  # fmt: skip
        fix = _("take tokenizer.json from the model as published")
        findings.append(Finding("tokenizer-lost-specials", "warning", str(file), what, fix=fix))


def tokens_by_id(plain: dict[str, int], added: dict[int, dict[str, Any]], rows: int) -> tuple[list[str], list[int]]:
    """(tokens, token types) for the ids 0 … rows - 1."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for token, number in plain.items():
        tokens[number], types[number] = token, NORMAL
    for number, entry in added.items():
        token = entry["content"]
        special = entry.get("special") or (token.startswith("<|") and token.endswith("|>"))
        tokens[number], types[number] = token, CONTROL if special else USER_DEFINED
    return tokens, types
