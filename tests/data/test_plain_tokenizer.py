"""The tokenizer that plans count with gives the ids that training has."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY
from jinja2 import TemplateError

from fasttune.data.dataset import load_dataset
from fasttune.data.plain_tokenizer import PlainTokenizer
from fasttune.data.tokenize import tokenize_samples
from fasttune.recipe.schema import DataRecipe
from fasttune.training import hub
from fasttune.training import model as models


@pytest.mark.parametrize("learn", ["assistant", "all"])
def test_the_same_examples_as_transformers(learn: str) -> None:
    recipe = DataRecipe(train=(str(REPOSITORY / "data/linzhi/val.jsonl"),), learn=learn)  # type: ignore[arg-type]
    samples = load_dataset(recipe, 0).train
    own = tokenize_samples(samples, PlainTokenizer(hub.TINY), recipe, 4096)
    assert own == tokenize_samples(samples, models.load_tokenizer(hub.TINY), recipe, 4096)


def test_a_template_with_all_helpers(tmp_path: Path) -> None:
    """What transformers gives a template: special tokens, JSON, a date, loop controls, a way to refuse."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hub.TINY / name, tmp_path)
    template = (
        "{{ eos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}{{ strftime_now('%Y') | length }}"
    )
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    talk = [{"role": "user", "content": "<你>"}, {"role": "assistant", "content": "b"}]
    given = {"tokenize": False, "add_generation_prompt": False}
    own, transformers = PlainTokenizer(tmp_path), models.load_tokenizer(tmp_path)
    text = own.apply_chat_template(talk, tokenize=False, add_generation_prompt=False)
    assert text == transformers.apply_chat_template(talk, **given) == '<|im_end|>{"role": "user", "content": "<你>"}4'
    with pytest.raises(TemplateError, match="too many"):
        own.apply_chat_template([*talk, *talk], tokenize=False, add_generation_prompt=False)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        PlainTokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<e>"}}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError):
        PlainTokenizer(tmp_path)


def test_a_tokenizer_is_parsed_once_and_anew_when_its_file_changed(tmp_path: Path) -> None:
    """A plan reads it three times. The change keeps size and time of the file."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(hub.TINY / name, tmp_path)
    before, file = PlainTokenizer(tmp_path).backend_tokenizer, tmp_path / "tokenizer.json"
    assert PlainTokenizer(tmp_path).backend_tokenizer is before
    taken = file.stat()
    file.write_bytes(file.read_bytes().replace(b"<|im_end|>", b"<|im_eee|>"))
    os.utime(file, ns=(taken.st_atime_ns, taken.st_mtime_ns))
    after = PlainTokenizer(tmp_path).backend_tokenizer
    assert before.token_to_id("<|im_eee|>") is None is not after.token_to_id("<|im_eee|>")
