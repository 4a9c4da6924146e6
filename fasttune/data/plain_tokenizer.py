"""A base's tokenizer without transformers, which takes seconds to import: for plans, which count tokens.

It gives the ids that transformers' fast tokenizer gives (a test compares them); training always uses transformers' own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from fasttune.console import FasttuneError
from fasttune.data.dataset import Sample
from fasttune.data.tokenize import ANY_LENGTH, Example, prompt_tokens, tokenize_samples
from fasttune.recipe.schema import DataRecipe


def plain_examples(base: Path, samples: Sequence[Sample], recipe: DataRecipe) -> list[Example] | None:
    """The samples as examples of any length, by the tokenizer in a base's folder; None where its files, its chat
    template or a sample can't be used, which `fasttune run` then says."""
    try:
        return list(tokenize_samples(samples, PlainTokenizer(base), recipe, ANY_LENGTH).examples)
    except (OSError, ValueError, TemplateError, FasttuneError):
        return None


def prompt_lengths(base: Path, questions: Sequence[str], system: str | None) -> list[int]:
    """The tokens before the answer to each question, by the tokenizer in a base's folder; empty where its files or its
    chat template can't be used, which `fasttune run` then says."""
    try:
        tokenizer = PlainTokenizer(base)
        return [len(prompt_tokens(one, system, tokenizer)) for one in questions]
    except (OSError, ValueError, TemplateError, FasttuneError):
        return []


class PlainTemplate:
    """A chat template alone, in the sandbox and with the helpers that transformers gives it; `special` are the special
    tokens by their names."""

    def __init__(self, chat_template: Any, name_or_path: str, special: Mapping[str, str] | None = None) -> None:
        self.chat_template, self.name_or_path, self.special = chat_template, name_or_path, special or {}

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        """The conversation as text. Raises TemplateError where the template refuses it."""
        assert not tokenize
        return compiled(self.chat_template).render(
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special,
        )


@functools.cache
def compiled(chat_template: str) -> Template:
    """A chat template, compiled once: a plan needs it for its samples and for the files that will be exported."""
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    sandbox.filters["tojson"] = as_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return sandbox.from_string(chat_template)


class PlainTokenizer:
    """The part of transformers' PreTrainedTokenizerFast that tokenizing samples uses."""

    def __init__(self, base: Path) -> None:
        """Read tokenizer.json, the chat template and the special tokens in a base's folder.

        Raises OSError where a file is missing, ValueError where one can't be read.
        """
        self.name_or_path = str(base)
        settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.backend_tokenizer = parsed((base / "tokenizer.json").read_bytes())
        own = base / "chat_template.jinja"
        self.chat_template = own.read_text(encoding="utf-8") if own.is_file() else settings.get("chat_template")
        named = {name: value for name, value in settings.items() if name.endswith("_token") and value}
        special = {name: value["content"] if isinstance(value, dict) else value for name, value in named.items()}
        self.apply_chat_template = PlainTemplate(self.chat_template, self.name_or_path, special).apply_chat_template


@functools.lru_cache(2)
def parsed(content: bytes) -> Any:
    """The tokenizer in a tokenizer.json, parsed once: a plan needs it for its samples, its questions and its files, and
    that of Qwen2.5 has 150,000 tokens. Raises ValueError where it can't be read."""
    try:
        return Tokenizer.from_buffer(content)
    except Exception as problem:  # tokenizers raises nothing narrower
        raise ValueError(str(problem)) from None


def as_json(value: Any, **settings: Any) -> str:
    """A value as JSON with its characters as they are: transformers' own filter, which escapes nothing for HTML."""
    return json.dumps(value, **{"ensure_ascii": False, **settings})


def refuse(message: str) -> None:
    """What a template calls to refuse a conversation."""
    raise TemplateError(message)
