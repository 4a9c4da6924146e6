"""The chat template in a GGUF renders what training rendered."""

from __future__ import annotations

from pathlib import Path

import gguf
import jinja2.sandbox
import pytest
from exports import SYSTEM, TINY

from fasttune.export import Artifact, chatml

TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": " b\n"},
    {"role": "user", "content": "c"},
]


def test_template_in_the_file_defaults_to_the_persona(exported: dict[str, Artifact]) -> None:
    tokenizer = chatml.load_tokenizer(TINY)
    source = gguf.GGUFReader(exported["f16"].path).fields["tokenizer.chat_template"].contents()
    template = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    persona, other = {"role": "system", "content": SYSTEM}, {"role": "system", "content": "other"}
    trained = chatml.render(tokenizer, [persona, *TURNS])
    assert template.render(messages=TURNS, add_generation_prompt=True) == trained
    assert template.render(messages=[persona, *TURNS], add_generation_prompt=True) == trained
    assert template.render(messages=[other, *TURNS], add_generation_prompt=True) == trained.replace(SYSTEM, "other")


def test_without_a_persona_the_training_template_stays() -> None:
    tokenizer = chatml.load_tokenizer(TINY)
    assert chatml.served_template(tokenizer, None) == tokenizer.chat_template
    assert chatml.default_system(tokenizer) == "You are a helpful assistant."


@pytest.mark.parametrize(
    ("old", "new"),
    [("<|im_start|>' +", "### ' +"), ("message['content']", "message['content'] | trim")],
    ids=["other marks", "trimmed content"],
)
def test_template_that_is_not_chatml(base: Path, old: str, new: str) -> None:
    (base / "chat_template.jinja").write_text(chatml.PLAIN.replace(old, new), encoding="utf-8")
    (finding,) = chatml.check_template(base, chatml.load_tokenizer(base))
    assert finding.code == "template-not-chatml" and "does not render conversations as ChatML" in finding.what
    assert finding.where == str(base)


def test_no_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    (finding,) = chatml.check_template(base, chatml.load_tokenizer(base))
    assert (finding.code, finding.what) == ("template-not-chatml", "the tokenizer has no chat template")


def test_plain_chatml_has_no_default_system(base: Path) -> None:
    (base / "chat_template.jinja").write_text(chatml.PLAIN, encoding="utf-8")
    tokenizer = chatml.load_tokenizer(base)
    assert chatml.check_template(base, tokenizer) == [] and chatml.default_system(tokenizer) is None
