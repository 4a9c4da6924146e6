"""The Modelfile beside a file, and what Ollama is told of a model whichever way it gets it.

TEMPLATE renders what the training template renders (chatml.py checks that it is ChatML); the template inside the file
does too, because Ollama prefers that one where it can do more.
"""

from __future__ import annotations

from typing import Any

from fasttune.export.serving import DEFAULT, Serving

# The newline at the end is part of the prompt: the answer starts on the line after "assistant".
TEMPLATE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
# Ollama takes SYSTEM "" for none (server/routes.go), though the model was trained with an empty turn.
WITH_EMPTY_SYSTEM = TEMPLATE.replace(
    "{{- range .Messages }}",
    '{{- range $i, $_ := .Messages }}{{ if and (eq $i 0) (ne .Role "system") }}'
    "<|im_start|>system\n<|im_end|>\n{{ end }}",
)
STOPS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def modelfile(file_name: str, system: str | None, num_ctx: int, serving: Serving = DEFAULT) -> str | None:
    """A Modelfile for `ollama create NAME -f Modelfile`; None for a system prompt that a Modelfile can't hold.

    Ollama's parser (parser/parser.go) ends a quoted text at three quotes and drops every character that Go calls
    unprintable, an ideographic space or an emoji's joiner among them. The HTTP API takes any text.
    """
    if system is not None and ('"""' in system or not all(one.isprintable() or one in "\n\t" for one in system)):
        return None
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{template(system)}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in STOPS]
    lines += [f"PARAMETER {name} {written(value)}" for name, value in numbers(num_ctx, serving).items()]
    return "\n".join(lines) + "\n"


def template(system: str | None) -> str:
    """The Go template of a model with this default system prompt."""
    return WITH_EMPTY_SYSTEM if system == "" else TEMPLATE


def parameters(num_ctx: int, serving: Serving) -> dict[str, Any]:
    """The parameters of the model for Ollama's HTTP API."""
    return {"stop": list(STOPS), **numbers(num_ctx, serving)}


def numbers(num_ctx: int, serving: Serving) -> dict[str, float | int]:
    """Those of them that are numbers."""
    return {**serving.parameters, "num_ctx": num_ctx}


def written(value: float | int) -> str:
    """A number as a Modelfile has it: 0.7, 2048, 0."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
