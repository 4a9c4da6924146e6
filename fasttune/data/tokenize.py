"""From a sample to token ids and the spans that are learned, by the model's own chat template.

    Sample ── template.skeleton, filled ──► segments ── each encoded as plain text ──► Example(tokens, learn)

- Control tokens come from the template alone: text that looks like one stays text.
- The end of the generation prompt is always a cut. An answer that begins with a line break would otherwise be merged
  with the header's own ("\\n\\n" is one token), and training would see another prompt than serving does (E5). (Where
  such an answer is history for a later one, a server that reads the whole text again joins them: no cut fits both.)
- Apart from these two, the ids are those of `apply_chat_template(tokenize=True)`, which cuts at control tokens too.
- What the template makes of the real sample is compared with the filled skeleton: a template that changes contents
  (trims them, drops earlier reasoning) is an error, not a surprise.

Knows no transformers; any tokenizer of Hugging Face's fast kind is passed in. Nothing is cut to fit, nothing skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from fasttune.console import FasttuneError, Finding, _, ngettext
from fasttune.data.chat_template import FIX, ChatTemplate, Segment, Tokenizer
from fasttune.data.dataset import Message, Sample
from fasttune.recipe.schema import DataRecipe

Learn = Literal["assistant", "all"]
BATCH = 1000  # samples encoded at once; a text that repeats among them (the system prompt) is encoded once


@dataclass(frozen=True)
class Example:
    """Token ids of one sample; `learn` are half-open spans of positions whose tokens the loss is taken on.

    No span starts at 0: the first token has nothing before it that could predict it.
    """

    sample_id: str
    tokens: tuple[int, ...]
    supervised: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TokenizedSamples:
    """All samples as examples, in order, and what is worth saying about them (none of it an error)."""

    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Piece:
    """Tokens that make readable text together: one, or those that share a character's bytes."""

    text: str
    tokens: tuple[int, ...]
    supervised: bool


def tokenize_sample(sample: Sample, tokenizer: Tokenizer, learn: Learn = "assistant") -> Example:
    """One sample's tokens and learned spans; FasttuneError where the template can't be used for it."""
    outcome = _examples([sample], ChatTemplate(tokenizer), learn)[0]
    if isinstance(outcome, Finding):
        raise FasttuneError(outcome)
    return outcome


def encode_all(samples: Sequence[Sample], template: ChatTemplate, learn: Learn) -> list[Example | Finding]:
    """An example of any length, or the reason why not, for each sample."""
    batches = (samples[start : start + BATCH] for start in range(0, len(samples), BATCH))
    return [outcome for batch in batches for outcome in _examples(batch, template, learn)]


Encode = Callable[[Sequence[Sample], ChatTemplate, Learn], list[Example | Finding]]  # encode_all, or one that remembers


def tokenize_samples(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    recipe: DataRecipe,
    max_seq_length: int,
    encode: Encode = encode_all,
) -> TokenizedSamples:
    """Every sample rendered, at most `max_seq_length` tokens each; FasttuneError names all that can't be, at once."""
    template = ChatTemplate(tokenizer)
    examples: list[Example] = []
    problems: list[Finding] = []
    for outcome in encode(samples, template, recipe.learn):
        if isinstance(outcome, Finding):
            problems.append(outcome)
        elif len(outcome.tokens) > max_seq_length:
            problems.append(_too_long(outcome, max_seq_length))
        else:
            examples.append(outcome)
    findings = _default_system(samples, template) + _control_text(samples, template)
    if problems:
        raise FasttuneError(*_merged(problems), *findings)
    return TokenizedSamples(tuple(examples), tuple(findings))


def prompt_tokens(question: str, system: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of everything before the answer to `question`, the same that training has before a learned span."""
    messages = [] if system is None else [Message("system", system)]
    return chat_tokens([*messages, Message("user", question)], tokenizer)


def chat_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[int, ...]:
    """As `prompt_tokens`, for a conversation that so far ends with the user."""
    example = tokenize_sample(Sample("", (*messages, Message("assistant", "x"))), tokenizer)
    return example.tokens[: example.supervised[-1][0]]


def pieces(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """The example as readable text, in order, each piece learned or not; together they hold every token once."""
    learned = {at for start, end in example.supervised for at in range(start, end)}
    found: list[Piece] = []
    at = 0
    while at < len(example.tokens):
        piece = _piece(example.tokens[at : at + 4], tokenizer, at in learned)
        found.append(piece)
        at += len(piece.tokens)
    return found


def _piece(tokens: tuple[int, ...], tokenizer: Tokenizer, learned: bool) -> Piece:
    """The fewest of these tokens that end with a whole character, which has at most four bytes."""
    texts = [tokenizer.backend_tokenizer.decode(list(tokens[:count]), skip_special_tokens=False)
             for count in range(1, len(tokens) + 1)]  # fmt: skip
    count = next((count for count, text in enumerate(texts) if not text.endswith("\ufffd")), 0)
    return Piece(texts[count], tokens[: count + 1], learned)


def _examples(samples: Sequence[Sample], template: ChatTemplate, learn: Learn) -> list[Example | Finding]:
    """An example, or the reason why not, for each sample; their texts are encoded together."""
    outlines = [_outline(sample, template) for sample in samples]
    filled = [outline for outline in outlines if not isinstance(outline, Finding)]
    ids = template.encode({text for outline in filled for text, segment in outline if segment.control is None})
    return [outline if isinstance(outline, Finding) else _example(sample.id, outline, ids, learn)
            for sample, outline in zip(samples, outlines, strict=True)]  # fmt: skip


def _outline(sample: Sample, template: ChatTemplate) -> list[tuple[str, Segment]] | Finding:
    """The sample's segments with their text, or why the template can't be used for it."""
    skeleton = template.skeleton(_roles(sample))
    if isinstance(skeleton, Finding):
        return replace(skeleton, where=sample.id)
    contents = [message.content for message in sample.messages]
    after = zip(contents, skeleton.literals[1:], strict=True)
    text = skeleton.literals[0] + "".join(content + literal for content, literal in after)
    if text != template.text([(message.role, message.content) for message in sample.messages]):
        what = _("the chat template changes this sample's text")
        why = _("what is learned would not be what was written")
        return Finding("template-changes-content", "error", sample.id, what, why, _(FIX))
    return [("".join(part if isinstance(part, str) else contents[part] for part in segment.parts), segment)
            for segment in skeleton.segments]  # fmt: skip


def _roles(sample: Sample) -> tuple[str, ...]:
    return tuple(message.role for message in sample.messages)


def _example(id: str, outline: list[tuple[str, Segment]], ids: dict[str, list[int]], learn: Learn) -> Example:
    tokens: list[int] = []
    spans: list[tuple[int, int]] = []
    for learned, group in groupby(outline, key=lambda pair: pair[1].supervised or learn == "all"):
        start = len(tokens)
        for text, segment in group:
            tokens += ids[text] if segment.control is None else [segment.control]
        if learned:
            spans.append((max(start, 1), len(tokens)))
    return Example(id, tuple(tokens), tuple(spans))


def _too_long(example: Example, limit: int) -> Finding:
    what = _("{tokens} tokens, but max_seq_length is {limit}", tokens=len(example.tokens), limit=limit)
    why = _("cut short, it would teach an answer without its end")
    fix = _("raise model.max_seq_length or split the sample")
    return Finding("too-long", "error", example.sample_id, what, why, fix)


def _merged(problems: list[Finding]) -> list[Finding]:
    """The problems, those that a template has with a whole shape only once, at the first sample, with their number."""
    counts: dict[Finding, list[Finding]] = {}
    for finding in problems:
        shape = finding.code.startswith("template-") and finding.code != "template-changes-content"
        counts.setdefault(replace(finding, where="") if shape else finding, []).append(finding)
    return [same[0] if len(same) == 1 else
            replace(same[0], what=_("{what} ({count} samples, this is the first)", what=same[0].what, count=len(same)))
            for same in counts.values()]  # fmt: skip


def _default_system(samples: Sequence[Sample], template: ChatTemplate) -> list[Finding]:
    texts = {roles: template.default_system(roles) for roles in {_roles(sample) for sample in samples}}
    without = [sample for sample in samples if texts[_roles(sample)]]
    if not without:
        return []
    what = ngettext("{n} sample has no system message; the chat template gives it its own: '{text}'",
                    "{n} samples have no system message; the chat template gives them its own: '{text}'",
                    len(without), text=texts[_roles(without[0])])  # fmt: skip
    why = _("answers are learned under that prompt and come best with it when served")
    fix = _("set data.system to the prompt you mean, '' for an empty one")
    return [Finding("template-default-system", "info", without[0].id, what, why, fix)]


def _control_text(samples: Sequence[Sample], template: ChatTemplate) -> list[Finding]:
    alike = [(sample.id, match[0]) for sample in samples for message in sample.messages
             if (match := template.control.search(message.content))]  # fmt: skip
    if not alike:
        return []
    what = ngettext("{n} message holds text that looks like a control token ({token}); it stays plain text",
                    "{n} messages hold text that looks like a control token ({token}); it stays plain text",
                    len(alike), token=alike[0][1])  # fmt: skip
    why = _("what serves the model may read it as the control token")
    fix = _("if the chat template was already applied to the data, undo that")
    return [Finding("control-text", "warning", alike[0][0], what, why, fix)]
