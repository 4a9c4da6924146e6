"""From a sample to token ids and supervised spans, by the model's own chat template.

    Sample ── ChatTemplate.skeleton, filled ──► segments ── each encoded as plain text ──► Example(tokens, supervised)

- Control tokens come from the template alone: text that looks like one stays text.
- The end of the generation prompt is always a cut. Otherwise the line break that begins an answer would be merged with
  the header's own ("\\n\\n" is one token), and training would see another prompt than serving does (E5). (Where such an
  answer is history for a later one, a server that tokenizes the whole text merges them: no cut is right for both.)
- Apart from these two, the ids are those of `apply_chat_template(tokenize=True)`, which cuts at control tokens too.
- What the template makes of the sample itself is compared with the filled skeleton: a template that changes contents
  (trims them, drops earlier reasoning) is refused.

Imports no transformers; any fast tokenizer of Hugging Face's is passed in. No sample is truncated or skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from fasttune.console import FasttuneError, Finding, _, ngettext
from fasttune.data.chat_template import ChatTemplate, Segment, Tokenizer
from fasttune.data.dataset import Message, Sample
from fasttune.data.general import is_general
from fasttune.data.rendering import FIX
from fasttune.recipe.schema import DataRecipe

Learn = Literal["assistant", "all"]
ANY_LENGTH = 2**30  # tokens, for samples that are shown or counted and not trained on
BATCH = 1000  # samples encoded at once; a text that repeats among them (the system prompt) is encoded once
CHARACTERS_PER_TOKEN = 4  # of English letters and spaces
TOKENS_PER_CHARACTER = 0.75  # outside ASCII: Qwen2.5 makes 301 tokens a sample of data/linzhi, 0.77 a character


@dataclass(frozen=True)
class Example:
    """Token ids of one sample; `supervised` are half-open spans of the positions whose tokens the loss is taken on.

    No span starts at 0: there is nothing before the first token that could predict it.
    """

    sample_id: str
    tokens: tuple[int, ...]
    supervised: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TokenizedSamples:
    """All samples as examples, in order, and findings about them, none of which is an error."""

    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Piece:
    """Tokens that together are readable text: one token, or those that share the bytes of a character."""

    text: str
    tokens: tuple[int, ...]
    supervised: bool


def tokenize_sample(sample: Sample, tokenizer: Tokenizer, learn: Learn = "assistant") -> Example:
    """One sample's tokens and supervised spans. Raises FasttuneError where the template can't be used for it."""
    outcome = _examples([sample], ChatTemplate(tokenizer), learn)[0]
    if isinstance(outcome, Finding):
        raise FasttuneError(outcome)
    return outcome


def encode_all(samples: Sequence[Sample], template: ChatTemplate, learn: Learn) -> list[Example | Finding]:
    """For each sample its example, of any length, or the finding that says why there is none."""
    batches = (samples[start : start + BATCH] for start in range(0, len(samples), BATCH))
    return [outcome for batch in batches for outcome in _examples(batch, template, learn)]


Encode = Callable[[Sequence[Sample], ChatTemplate, Learn], list[Example | Finding]]  # encode_all or token_cache.Cache


def tokenize_samples(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    recipe: DataRecipe,
    max_seq_length: int,
    encode: Encode = encode_all,
) -> TokenizedSamples:
    """Every sample as an example of at most `max_seq_length` tokens.

    Raises FasttuneError with a finding for every sample that is longer or that the template can't be used for.
    """
    template = ChatTemplate(tokenizer)
    examples: list[Example] = []
    problems: list[Finding] = []
    for outcome in encode(samples, template, recipe.learn):
        if isinstance(outcome, Finding):
            problems.append(outcome)
        elif len(outcome.tokens) > max_seq_length:
            problems.append(too_long(outcome.sample_id, len(outcome.tokens), max_seq_length))
        else:
            examples.append(outcome)
    findings = _default_system(samples, template) + _control_text(samples, template)
    if problems:
        raise FasttuneError(*_merged(problems), *findings)
    return TokenizedSamples(tuple(examples), tuple(findings))


def prompt_tokens(question: str, system: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids of everything before the answer to `question`: those that training has before a supervised span."""
    messages = [] if system is None else [Message("system", system)]
    return chat_tokens([*messages, Message("user", question)], tokenizer)


def chat_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[int, ...]:
    """As `prompt_tokens`, for a conversation whose last message is the user's."""
    example = tokenize_sample(Sample("", (*messages, Message("assistant", "x"))), tokenizer)
    return example.tokens[: example.supervised[-1][0]]


def estimate_tokens(text: str) -> float:
    """About how many tokens Qwen2.5 makes of a text, estimated from its characters without a tokenizer.

    Its tokenizer makes one token of each digit and, mostly, of an ASCII punctuation mark, and one of four English
    letters; of Chinese text about 0.77 a character (data/linzhi), and about two of an emoji.
    """
    return sum(map(_estimated_share, text))


def _estimated_share(character: str) -> float:
    """Estimated tokens of one character."""
    if character.isascii():
        return 1 / CHARACTERS_PER_TOKEN if character.isalpha() or character == " " else 1.0
    return TOKENS_PER_CHARACTER if character <= "\uffff" else 2.0


def pieces(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """The example as readable text, in order; together the pieces hold every token once."""
    supervised = {at for start, end in example.supervised for at in range(start, end)}
    found: list[Piece] = []
    at = 0
    while at < len(example.tokens):
        piece = _piece(example.tokens[at : at + 4], tokenizer, at in supervised)
        found.append(piece)
        at += len(piece.tokens)
    return found


def _piece(tokens: tuple[int, ...], tokenizer: Tokenizer, supervised: bool) -> Piece:
    """The fewest of these tokens that end with a complete character; one has at most four bytes in UTF-8."""
    texts = [tokenizer.backend_tokenizer.decode(list(tokens[:count]), skip_special_tokens=False)
             for count in range(1, len(tokens) + 1)]  # fmt: skip
    count = next((count for count, text in enumerate(texts) if not text.endswith("\ufffd")), 0)
    return Piece(texts[count], tokens[: count + 1], supervised)


def _examples(samples: Sequence[Sample], template: ChatTemplate, learn: Learn) -> list[Example | Finding]:
    """For each sample its example, or the finding that says why there is none; all texts are encoded together."""
    outlines = [_outline(sample, template) for sample in samples]
    filled = [outline for outline in outlines if not isinstance(outline, Finding)]
    ids = template.encode({text for outline in filled for text, segment in outline if segment.control is None})
    return [outline if isinstance(outline, Finding) else _example(sample, outline, ids, learn)
            for sample, outline in zip(samples, outlines, strict=True)]  # fmt: skip


def _outline(sample: Sample, template: ChatTemplate) -> list[tuple[str, Segment]] | Finding:
    """The sample's segments, each with its text, or the finding that says why the template can't be used for it."""
    skeleton = template.skeleton(_roles(sample))
    if isinstance(skeleton, Finding):
        return replace(skeleton, where=sample.id)
    contents = [message.content for message in sample.messages]
    after = zip(contents, skeleton.literals[1:], strict=True)
    text = skeleton.literals[0] + "".join(content + literal for content, literal in after)
    if text != template.text([(message.role, message.content) for message in sample.messages]):
        what = _("the chat template changes this sample's text")
        why = _("the model would be trained on other text than the file holds")
        return Finding("template-changes-content", "error", sample.id, what, why, _(FIX))
    return [("".join(part if isinstance(part, str) else contents[part] for part in segment.parts), segment)
            for segment in skeleton.segments]  # fmt: skip


def _roles(sample: Sample) -> tuple[str, ...]:
    """The shape of a sample: the roles of its messages."""
    return tuple(message.role for message in sample.messages)


def _example(sample: Sample, outline: list[tuple[str, Segment]], ids: dict[str, list[int]], learn: Learn) -> Example:
    """The example of a sample's segments; `ids` holds the token ids of each text that is no control token."""
    masked = {number for number, message in enumerate(sample.messages) if not message.learn}
    tokens: list[int] = []
    spans: list[tuple[int, int]] = []

    def is_learned(pair: tuple[str, Segment]) -> bool:
        return (pair[1].supervised or learn == "all") and pair[1].message not in masked

    for supervised, group in groupby(outline, key=is_learned):
        start = len(tokens)
        for text, segment in group:
            tokens += ids[text] if segment.control is None else [segment.control]
        if supervised:
            spans.append((max(start, 1), len(tokens)))
    return Example(sample.id, tuple(tokens), tuple(spans))


def too_long(sample_id: str, tokens: int, limit: int, *, estimated: bool = False) -> Finding:
    """The finding for a sample of more than `limit` tokens; a warning where they are `estimated`."""
    what = _("{tokens} tokens, but max_seq_length is {limit}", tokens=tokens, limit=limit)
    if estimated:
        what = _("about {tokens} tokens; the default of max_seq_length is {limit}", tokens=tokens, limit=limit)
    why = _("truncated, it would teach an answer without its end")
    fix = _("raise model.max_seq_length or split the sample")
    return Finding("too-long", "warning" if estimated else "error", sample_id, what, why, fix)


def estimate_sample(sample: Sample) -> float:
    """The estimate of a sample's tokens, without those of the chat template."""
    return sum(estimate_tokens(message.content) for message in sample.messages)


def _merged(problems: list[Finding]) -> list[Finding]:
    """The findings; one that a template has with every sample of a shape only once, with the number of samples."""
    counts: dict[Finding, list[Finding]] = {}
    for finding in problems:
        of_shape = finding.code.startswith("template-") and finding.code != "template-changes-content"
        counts.setdefault(replace(finding, where="") if of_shape else finding, []).append(finding)
    return [same[0] if len(same) == 1 else
            replace(same[0], what=_("{what} ({count} samples, this is the first)", what=same[0].what, count=len(same)))
            for same in counts.values()]  # fmt: skip


def _default_system(samples: Sequence[Sample], template: ChatTemplate) -> list[Finding]:
    """The note about samples without a system message to which the template adds a system prompt of its own; not about
    general conversations, which are to have it."""
    texts = {roles: template.default_system(roles) for roles in {_roles(sample) for sample in samples}}
    without = [sample for sample in samples if texts[_roles(sample)] and not is_general(sample.id)]
    if not without:
        return []
    what = ngettext("{n} sample has no system message; the chat template gives it its own: '{text}'",
                    "{n} samples have no system message; the chat template gives them its own: '{text}'",
                    len(without), text=texts[_roles(without[0])])  # fmt: skip
    why = _("the model is trained with that prompt, and answers best when it is served with the same one")
    fix = _("set data.system to another system prompt, or to '' for an empty one")
    return [Finding("template-default-system", "info", without[0].id, what, why, fix)]


def _control_text(samples: Sequence[Sample], template: ChatTemplate) -> list[Finding]:
    """The warning about contents that hold the text of a control token, such as <|im_end|>."""
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
