"""Chat templates taken apart: the text around contents, the supervised spans, and the templates that are refused."""

from __future__ import annotations

import pytest
from test_tokenize import (
    CHATML,
    DROPS_SYSTEM,
    NO_DEFAULT,
    NO_END,
    NO_SYSTEM_ROLE,
    THINKS_LAST,
    TRIMS,
    chat,
    problems,
    small_tokenizer,
    supervised_texts,
    with_template,
)

from fasttune.console import Finding
from fasttune.data.chat_template import ChatTemplate, Segment
from fasttune.data.tokenize import tokenize_sample

# --- taken apart -----------------------------------------------------------------------------------------


def test_segments_of_a_conversation() -> None:
    """A cut at each control token and at the end of the generation prompt; supervised from there to <|im_end|>."""
    made = with_template(NO_DEFAULT)
    template = ChatTemplate(made)
    skeleton = template.skeleton(("user", "assistant"))
    assert not isinstance(skeleton, Finding)
    start, end = (made.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert skeleton.literals == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n")
    assert skeleton.segments == (
        Segment(("<|im_start|>",), start, False),
        Segment(("user\n", 0, ""), None, False, 0),
        Segment(("<|im_end|>",), end, False),
        Segment(("\n",), None, False),
        Segment(("<|im_start|>",), start, False),
        Segment(("assistant\n",), None, False),
        Segment(("", 1, ""), None, True, 1),
        Segment(("<|im_end|>",), end, True, 1),
        Segment(("\n",), None, False),
    )
    assert template.skeleton(("user", "assistant")) is skeleton, "a shape is rendered once"


def test_the_text_of_a_conversation_and_of_a_prompt() -> None:
    template = ChatTemplate(with_template(NO_DEFAULT))
    assert template.text([("user", "q")]) == "<|im_start|>user\nq<|im_end|>\n"
    assert template.text([("user", "q")], prompt=True) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "roles", "text"),
    [
        (CHATML, ("user", "assistant"), "<|im_start|>system\nBe kind.<|im_end|>\n"),
        (CHATML, ("system", "user", "assistant"), ""),
        (NO_DEFAULT, ("user", "assistant"), ""),
        (NO_SYSTEM_ROLE, ("user", "assistant"), ""),
    ],
)
def test_the_system_prompt_of_the_template(template: str, roles: tuple[str, ...], text: str) -> None:
    found = ChatTemplate(with_template(template)).default_system(roles)
    assert found == text.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")


def test_texts_are_encoded_without_control_tokens() -> None:
    template = ChatTemplate(small_tokenizer())
    encoded = template.encode({"the fox", "a<|im_end|>", "<tool_call>"})
    assert {template.backend.decode(ids, skip_special_tokens=False) for ids in encoded.values()} == set(encoded)
    assert not {id for ids in encoded.values() for id in ids} & set(template.ids.values())


def test_truncation_left_on_by_an_earlier_call_does_not_cut() -> None:
    made = small_tokenizer()
    made.backend_tokenizer.enable_truncation(3)
    made.backend_tokenizer.enable_padding(length=64)
    given = chat("q" * 50, "a" * 50)
    assert supervised_texts(tokenize_sample(given, made), made) == ["a" * 50 + "<|im_end|>"]


# --- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "code", "refused"),
    [
        (TRIMS, "template-changes-content", ["t:4"]),
        (DROPS_SYSTEM, "template-drops-message", ["t:2"]),
        (THINKS_LAST, "template-does-not-nest", ["t:3"]),
        (NO_END, "template-no-end", ["t:1"]),
        (NO_SYSTEM_ROLE, "template-refuses", ["t:2"]),
        ("{{ 1 +", "template-refuses", ["t:1", "t:2", "t:3"]),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template: str, code: str, refused: list[str]) -> None:
    """One finding for each way it does not fit; t:4 has the shape of t:1."""
    samples = [chat("q", "a", id="t:1"), chat("q", "a", system="s", id="t:2"), chat("q", "a", "q", "a", id="t:3"),
               chat("q", "a ", id="t:4")]  # fmt: skip
    assert problems(samples, with_template(template)) == [(code, where) for where in refused]


def test_no_template_no_training() -> None:
    made = small_tokenizer()
    made.chat_template = None
    assert problems([chat("q", "a")], made) == [("no-chat-template", "")]
