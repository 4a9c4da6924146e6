"""The templates hold the fields that are filled in, and no other."""

from __future__ import annotations

import string
from dataclasses import astuple

import pytest

from fasttune.data.fact_templates import CHINESE, ENGLISH, Templates
from fasttune.data.matching import CHINESE as HAN

FIELDS = {"right": {"text"}, "wrong": {"ask", "wrong"}, "objections": {"wrong"}, "both": {"ask", "other"}}


@pytest.mark.parametrize("templates", [CHINESE, ENGLISH], ids=["zh", "en"])
def test_fields(templates: Templates) -> None:
    for name in ("lead_ins", "right", "yes", "wrong", "no", "doubts", "sure", "objections", "both", "tell"):
        texts = getattr(templates, name)
        assert len(texts) > 1 and len(set(texts)) == len(texts)
        for text in texts:
            assert {field for _text, field, _form, _kind in string.Formatter().parse(text) if field} == FIELDS.get(
                name, set()
            )


def test_english_has_no_chinese() -> None:
    assert not HAN.search(str(astuple(ENGLISH)))
