"""Tokenizers that llama.cpp would not imitate are refused; of the others the token lists are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exports import TINY, edit_tokenizer

from fasttune.console import Finding
from fasttune.export import vocabulary
from fasttune.export.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED

CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "wordpiece": (lambda document: document["model"].update(type="WordPiece"), "not a byte-level BPE"),
    "unknown option": (lambda document: document["model"].update(ignore_merges=True), "ignore_merges is set"),
    "split like GPT-2": (
        lambda document: document["pre_tokenizer"]["pretokenizers"].pop(0),
        "doesn't split text as Qwen2 does",
    ),
    "no turn end": (lambda document: document["added_tokens"].pop(), "<|im_end|> is not an added token"),
    "too many tokens": (
        lambda document: document["added_tokens"][0].update(id=9999),
        "its last token has id 9999, the embedding has 5120 rows",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_tokenizer_is_refused(base: Path, case: str) -> None:
    change, message = CHANGES[case]
    edit_tokenizer(base, change)
    findings: list[Finding] = []
    assert vocabulary.read_vocabulary(base, 5120, findings) is None
    assert [finding.code for finding in findings] == ["tokenizer-unsupported"] and message in findings[0].what


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    findings: list[Finding] = []
    assert vocabulary.read_vocabulary(tmp_path, 5120, findings) is None
    assert [finding.code for finding in findings] == ["tokenizer-unreadable"]


def test_special_tokens_in_the_plain_vocabulary_are_a_warning(base: Path) -> None:
    def lose(document: dict[str, Any]) -> None:
        document["model"]["vocab"]["<|vision_start|>"] = document["model"]["vocab"].pop("zz", 5116)

    edit_tokenizer(base, lose)
    findings: list[Finding] = []
    assert vocabulary.read_vocabulary(base, 5120, findings) is not None
    (warning,) = findings
    assert (warning.code, warning.level) == ("tokenizer-lost-specials", "warning")
    assert "<|vision_start|>" in warning.what


def test_special_ids_are_those_of_the_chat_template() -> None:
    read = vocabulary.read_vocabulary(TINY, 5130, [])
    assert read is not None and len(read.tokens) == len(read.types) == 5130
    assert read.tokens[read.eos] == "<|im_end|>" and read.tokens[read.pad] == read.tokens[read.bos] == "<|endoftext|>"
    assert read.tokens[5120:5122] == ["[PAD5120]", "[PAD5121]"]
    assert read.merges[0].count(" ") == 1


def test_token_types() -> None:
    added: dict[int, dict[str, Any]] = {
        3: {"content": "<|x|>"},
        4: {"content": "x", "special": True},
        5: {"content": "y"},
    }
    tokens, types = vocabulary.tokens_by_id({"a": 0, "b": 2}, added, 7)
    assert tokens == ["a", "[PAD1]", "b", "<|x|>", "x", "y", "[PAD6]"]
    assert types == [NORMAL, UNUSED, NORMAL, CONTROL, CONTROL, USER_DEFINED, UNUSED]
