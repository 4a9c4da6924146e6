"""Does a model in Ollama answer as its file does? Asked right after the import (invariant E5).

1. The prompt: `prompt_eval_count` of one question without a system message must be the number of tokens that training
   makes of it with the system prompt. Another template, a lost system prompt, a doubled start token: each changes it.
2. The answer, at temperature 0: its beginning must be the file's own likeliest answer by llama.cpp. The two programs
   round differently on different machines, so a flat distribution may part them later; the first tokens hardly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.command import command_line
from fasttune.console import Finding, _, ngettext
from fasttune.data.tokenize import prompt_tokens
from fasttune.export import chatml
from fasttune.export.artifact import Artifact, document_path, read_document
from fasttune.export.llama import Sampling, open_gguf, stream
from fasttune.export.ollama_server import ask_server, connect, ollama_errors, wrong_answers
from fasttune.runs import documents
from fasttune.runs.outcomes import OllamaProof

if TYPE_CHECKING:
    from httpx import Request

QUESTION = "你好，你是谁？"  # where the recipe has no probe questions
TOKENS = 24  # of the answers that are compared
ENOUGH = 8  # of them are the same: the model is the same
# The Modelfile's own sampling would decide otherwise: a penalty changes the likeliest token too.
OPTIONS = {"temperature": 0, "top_k": 1, "repeat_penalty": 1.0, "seed": 0, "num_predict": TOKENS}


@dataclass(frozen=True)
class Reply:
    """What a server said: the text, and how many tokens it made of the prompt (None: it told none)."""

    text: str
    prompt_tokens: int | None


def prove(
    artifact: Artifact, model: str, question: str, system: str | None, tokenizer: Path, host: str | None = None
) -> OllamaProof:
    """Ask `model` one question and compare with training and with the file; kept in the file's document.

    `system` is the system prompt of the training, `tokenizer` the folder of its tokenizer. Raises FasttuneError where
    the server or llama.cpp fails.
    """
    ids = prompt_tokens(question, system, chatml.load_tokenizer(tokenizer))
    version = ask_server(host).version
    reply = ask(model, question, host)
    with open_gguf(artifact.path, len(ids) + TOKENS + 1) as loaded:
        pieces = list(stream(loaded, ids, Sampling(TOKENS)))
    same = same_pieces(pieces, reply.text)
    passed = reply.prompt_tokens in (None, len(ids)) and same >= min(ENOUGH, len(pieces))
    proof = OllamaProof(
        model, version, question, reply.prompt_tokens, len(ids), reply.text, "".join(pieces), len(pieces), same, passed
    )
    documents.write(document_path(artifact.path), replace(read_document(artifact.path), ollama=proof))
    return proof


def ask(model: str, question: str, host: str | None) -> Reply:
    """The reply to a question that is asked without a system message, so that the model's own is used."""
    requests: list[Request] = []
    client = connect(host, requests)
    with ollama_errors(model, requests), wrong_answers():
        messages = [{"role": "user", "content": question}]
        said = client.chat(model, messages=messages, options=dict(OPTIONS), stream=False)
        count = said.prompt_eval_count
        return Reply(str(said.message.content or ""), None if count is None else int(count))


def same_pieces(pieces: Sequence[str], text: str) -> int:
    """How many of the pieces, joined, a text begins with; all of them where the text ends within the last one.

    White space at the beginning is left out of both: some versions of Ollama trim it.
    """
    written, text = "", text.lstrip()
    for number, piece in enumerate(pieces):
        written += piece
        if not text.startswith(written.lstrip()):
            return number
    return len(pieces)


def proof_line(proof: OllamaProof) -> str:
    """What is said of a proof that passed."""
    prompt = ngettext("the prompt has {n} token as in training", "the prompt has {n} tokens as in training",
                      proof.trained_prompt_tokens)  # fmt: skip
    if proof.prompt_tokens is None:
        prompt = _("it does not tell the tokens of the prompt")
    answer = ngettext("the answer begins with the file's own {n} token",
                      "the answer begins with the file's own {n} tokens", proof.same_tokens)  # fmt: skip
    return _("Ollama {version} answers as the file does: {prompt}, {answer}", version=proof.version, prompt=prompt,
             answer=answer)  # fmt: skip


def proof_findings(proof: OllamaProof, file: Path) -> list[Finding]:
    """What differs: an error for another prompt, a warning for another answer; empty where the proof passed."""
    where, findings = f"ollama:{proof.model}", []
    if proof.prompt_tokens not in (None, proof.trained_prompt_tokens):
        what = _("Ollama {version} makes {found} tokens of a prompt that has {expected} in training",
                 version=proof.version, found=proof.prompt_tokens, expected=proof.trained_prompt_tokens)  # fmt: skip
        why = _("it renders the conversation otherwise, or leaves the system prompt out")
        fix = _("look at `{command}`; update Ollama and import again, else please report it",
                command=f"ollama show {proof.model} --modelfile")  # fmt: skip
        findings.append(Finding("ollama-prompt-differs", "error", where, what, why, fix))
    elif not proof.passed:
        what = _("Ollama {version} answers {found}, the file by llama.cpp {expected}", version=proof.version,
                 found=repr(proof.answer[:60]), expected=repr(proof.file_answer[:60]))  # fmt: skip
        why = _("at temperature 0 both take the likeliest token; rounding parts them later than after {n} tokens",
                n=proof.same_tokens)  # fmt: skip
        compare = command_line(["compare", f"ollama:{proof.model}", str(file)])
        fix = _("compare the two: `{command}`", command=compare)
        findings.append(Finding("ollama-answer-differs", "warning", where, what, why, fix))
    return findings
