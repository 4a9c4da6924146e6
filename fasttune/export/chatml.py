"""The chat template that goes into the file, so that prompts are rendered as in training (invariant E5).

Training renders conversations with the tokenizer's own template. llama.cpp and Ollama render with the template inside
the GGUF, and Ollama prefers its own Go TEMPLATE unless the one inside mentions tools. All agree where the one inside is
plain ChatML. Therefore the training template must render ordinary conversations as ChatML, which is checked here on the
strings, and a persona's system prompt becomes the template's default system message: a conversation without a system
message gets the persona and not "You are Qwen".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fasttune.console import FasttuneError, Finding, _
from fasttune.data import rendering
from fasttune.data.plain_tokenizer import PlainTokenizer
from fasttune.training import model as models

# A tokenizer of transformers; no stable type can be imported without importing all of it.
Tokenizer = Any
Message = dict[str, str]

PLAIN = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
DEFAULT_SYSTEM = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' -}}"
    "{%- endif -%}"
)
ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
SYSTEM_START, SYSTEM_END = "<|im_start|>system\n", "<|im_end|>\n"
SAMPLE: list[Message] = [
    {"role": "system", "content": "s, 系统"},
    {"role": "user", "content": " 你好 \nhello "},
    {"role": "assistant", "content": "早！\n\n"},
    {"role": "user", "content": "{{ x }} {% y %}"},
]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder, as training loads it. Raises FasttuneError where it needs Python code of its own."""
    return models.load_tokenizer(folder)


def load_template(folder: Path) -> Tokenizer:
    """The tokenizer in a folder as far as its template is concerned, without transformers where that is possible: it
    takes seconds to import."""
    try:
        tokenizer = PlainTokenizer(folder)
    except (OSError, ValueError):
        return load_tokenizer(folder)
    return tokenizer if isinstance(tokenizer.chat_template, str) else load_tokenizer(folder)


def plain_chatml(messages: list[Message]) -> str:
    """A conversation to be answered, in ChatML."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return turns + "<|im_start|>assistant\n"


def render(tokenizer: Tokenizer, messages: list[Message]) -> str:
    """A conversation to be answered, rendered by the training template. Raises FasttuneError where it fails."""
    return rendering.render_checked(tokenizer, messages, prompt=True)


def check_template(folder: Path, tokenizer: Tokenizer) -> list[Finding]:
    """A finding where this tokenizer's chat template does not render conversations as ChatML; empty where it does."""
    why = _("Ollama and llama.cpp would render prompts differently from training")
    try:
        if not tokenizer.chat_template:
            what = _("the tokenizer has no chat template")
        elif render(tokenizer, SAMPLE) != plain_chatml(SAMPLE):
            what = _("the chat template does not render conversations as ChatML")
        else:
            default_system(tokenizer)  # a conversation without a system message must render too
            return []
    except FasttuneError as failure:
        return list(failure.findings)
    fix = _("use the chat template of a Qwen2.5 Instruct model and train with it")
    return [Finding("template-not-chatml", "error", str(folder), what, why=why, fix=fix)]


def default_system(tokenizer: Tokenizer) -> str | None:
    """The system message that the training template adds to a conversation without one; None where it adds none."""
    rendered = render(tokenizer, [{"role": "user", "content": "x"}])
    if not rendered.startswith(SYSTEM_START):
        return None
    return rendered.removeprefix(SYSTEM_START).split(SYSTEM_END + "<|im_start|>user\n")[0]


def served_template(tokenizer: Tokenizer, system: str | None) -> str:
    """The template for the file: the training template, or plain ChatML with `system` as default system message."""
    if system is None:
        return str(tokenizer.chat_template)
    # Only escapes that the Jinja of llama.cpp, of Ollama and of Python all know; Chinese stays readable.
    literal = "".join(ESCAPES.get(character, character) for character in system)
    return DEFAULT_SYSTEM.replace("SYSTEM", literal) + PLAIN
