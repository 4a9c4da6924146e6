"""The model's own chat template, taken apart: what it writes around contents, and which part of it an answer is.

The template is rendered once for every shape (tuple of roles) with a mark in place of each content:

    <|im_start|>user\\n⟨0⟩<|im_end|>\\n<|im_start|>assistant\\n│⟨1⟩<|im_end|>│\\n        │…│ = supervised

and cut at its own control tokens and at the edges of the supervised spans. Supervised is what the model has to
generate: from the end of the generation prompt to the control token that ends the turn. No template is recognized by
its name; one that can't be taken apart like this is refused: it leaves out a message, or writes a message differently
when another one follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from jinja2 import TemplateError

from fasttune.console import Finding, _, error
from fasttune.data import rendering
from fasttune.data.rendering import FIX

MARK = re.compile("\ue000([0-9]+)\ue001")  # stands for a content; private use characters, so no filter trims it
Turns = Sequence[tuple[str, str]]  # (role, content) of each message


class Tokenizer(rendering.Tokenizer, Protocol):
    """The part of transformers' PreTrainedTokenizerFast that is used here."""

    backend_tokenizer: Any


@dataclass(frozen=True)
class Segment:
    """Text between two cuts, as literal strings and indices of contents.

    `control` is the token's id where the text is a control token. `supervised`: the loss is taken on its tokens, unless
    the message it belongs to is excluded from training; `message` is that one's index.
    """

    parts: tuple[str | int, ...]
    control: int | None
    supervised: bool
    message: int | None = None


@dataclass(frozen=True)
class Skeleton:
    """The template's output for one shape: the `literals` around the contents, and the whole of it in `segments`.

    n contents have n + 1 literals: before the first, between two, after the last.
    """

    literals: tuple[str, ...]
    segments: tuple[Segment, ...]


class ChatTemplate:
    """A tokenizer's chat template, its control tokens and the skeletons of the shapes seen so far.

    `control` matches any control token: all tokens added to the vocabulary, special or not (`<tool_call>`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer's chat template. Raises FasttuneError where it has none."""
        if not tokenizer.chat_template:
            why = _("the chat template defines where a turn begins and ends")
            fix = _("use an Instruct model, or put a chat_template.jinja into the base's folder")
            raise error("no-chat-template", _("the base's tokenizer has no chat template"), why=why, fix=fix)
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()  # an earlier call may have left truncation and padding switched on
        self.backend.no_padding()
        self.plain: Any = None  # the tokenizer without control tokens, made when a text needs it
        added = self.backend.get_added_tokens_decoder()
        self.ids = {token.content: id for id, token in added.items() if token.content}
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self.skeletons: dict[tuple[str, ...], Skeleton | Finding] = {}

    def text(self, turns: Turns, *, prompt: bool = False) -> str:
        """The conversation as the template writes it; with `prompt`, followed by the generation prompt. Raises as
        `rendering.render` does."""
        conversation = [{"role": role, "content": content} for role, content in turns]
        return rendering.render(self.tokenizer, conversation, prompt=prompt)

    def skeleton(self, roles: tuple[str, ...]) -> Skeleton | Finding:
        """The skeleton of conversations of these roles, or the reason why there is none (a finding without `where`)."""
        if roles not in self.skeletons:
            try:
                self.skeletons[roles] = self._take_apart(roles)
            except TemplateError as problem:
                what = _("the chat template refuses the roles {roles}: {reason}", roles=" ".join(roles), reason=problem)
                self.skeletons[roles] = Finding("template-refuses", "error", "", what, fix=_(FIX))
        return self.skeletons[roles]

    def encode(self, texts: set[str]) -> dict[str, list[int]]:
        """The token ids of each text; text that looks like a control token is encoded as plain text."""
        alike = [text for text in texts if self.control.search(text)]
        ordinary = list(texts.difference(alike))
        encoded = self.backend.encode_batch_fast(ordinary, add_special_tokens=False)
        if alike and self.plain is None:
            # `encode_special_tokens` spares tokens that are added but not special (<tool_call>): take all of them out.
            document = json.loads(self.backend.to_str()) | {"added_tokens": []}
            self.plain = type(self.backend).from_str(json.dumps(document))
        if alike:
            encoded += self.plain.encode_batch_fast(alike, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(ordinary + alike, encoded, strict=True)}

    def default_system(self, roles: tuple[str, ...]) -> str:
        """The system prompt that the template adds to conversations of these roles; empty where it adds none."""
        bare = self.skeleton(roles)
        given = self.skeleton(("system", *roles)) if roles[0] != "system" else bare
        if bare is given or isinstance(bare, Finding) or isinstance(given, Finding):
            return ""
        (before, after), text = given.literals[:2], bare.literals[0]
        inserts = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
        return text[len(before) : len(text) - len(after)] if inserts else ""

    def _take_apart(self, roles: tuple[str, ...]) -> Skeleton | Finding:
        """Render the template with marks for contents, find the supervised spans and cut. Raises TemplateError."""
        turns = [(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]
        whole = self.text(turns)
        split = MARK.split(whole)
        if split[1::2] != [str(index) for index in range(len(roles))]:
            what = _("the chat template leaves out or moves messages of the roles {roles}", roles=" ".join(roles))
            return Finding("template-drops-message", "error", "", what, fix=_(FIX))
        spans: dict[tuple[int, int], int] = {}
        for index, (role, mark) in enumerate(turns):
            if role != "assistant":
                continue
            turn, answer = self.text(turns[: index + 1]), whole.index(mark)
            prompt = self.text(turns[:index], prompt=True) if index else self._before_greeting(turn[:answer])
            if not (whole.startswith(turn) and turn.startswith(prompt) and len(prompt) <= answer):
                return _does_not_nest(index)
            end = self.control.search(turn, answer + len(mark))
            if end is None:
                return _no_end(turn[answer + len(mark) :])
            spans[len(prompt), end.end()] = index
        if not spans:
            what = _("the sample has no assistant message")
            return Finding("nothing-to-learn", "error", "", what, fix=_("add an answer or remove the sample"))
        return Skeleton(tuple(split[0::2]), tuple(self._cut(whole, spans)))

    def _before_greeting(self, text: str) -> str:
        """What stands before an assistant's message that is the first of all: `text`, if the generation prompt ends it.
        Templates can't render the prompt of a conversation without messages."""
        question = [("user", "x")]
        header = self.text(question, prompt=True).removeprefix(self.text(question))
        return text if text.endswith(header) else header

    def _cut(self, whole: str, spans: dict[tuple[int, int], int]) -> Iterator[Segment]:
        """The segments of rendered text; `spans` are the supervised ones, half-open, in characters, with the index of
        the message that each belongs to."""
        edges = sorted({0, len(whole), *(edge for span in spans for edge in span)})
        for start, end in pairwise(edges):
            owner = next((message for (first, last), message in spans.items() if first <= start < last), None)
            for text in filter(None, self.control.split(whole[start:end])):
                parts = tuple(int(part) if odd % 2 else part for odd, part in enumerate(MARK.split(text)))
                message = next((part for part in parts if isinstance(part, int)), None) if owner is None else owner
                yield Segment(parts, self.ids.get(text), owner is not None, message)


def _does_not_nest(index: int) -> Finding:
    """The finding for a template that changes what it wrote up to message `index` (from 0) when another one follows."""
    what = _("the chat template writes messages 1 to {number} differently when another one follows", number=index + 1)
    why = _("the model would be served with other prompts than it was trained on")
    return Finding("template-does-not-nest", "error", "", what, why, _(FIX))


def _no_end(text: str) -> Finding:
    """The finding for a template that writes `text`, no control token, after an answer."""
    what = _("the chat template ends an answer with {text}, which is not a control token", text=json.dumps(text))
    return Finding("template-no-end", "error", "", what, _("the model would not learn to stop"), _(FIX))
