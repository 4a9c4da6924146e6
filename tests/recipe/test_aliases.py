"""Other trainers' names for settings: none is a setting here, and each leads to the right one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from recipe_files import MINIMAL, refused

from fasttune.recipe import aliases
from fasttune.recipe.schema import KEYS, TABLES


@pytest.mark.parametrize("alias", sorted(aliases.RENAMED))
def test_foreign_name_is_refused_with_the_right_one(tmp_path: Path, alias: str) -> None:
    target = aliases.RENAMED[alias]
    for key in (alias, f"train.{alias}", alias.upper().replace("_", "-")):
        found = refused(tmp_path, MINIMAL, f"{key}=1")
        assert [finding.code for finding in found] == ["unknown-key"]
        assert found[0].fix.startswith(f"write `--set {target}=…`")


def test_foreign_names_are_foreign_and_lead_somewhere() -> None:
    leaves = {key.leaf for key in KEYS.values()}
    assert set(aliases.ALIASES) <= set(KEYS) and set(aliases.notes()) <= set(aliases.ALIASES)
    assert set(aliases.TABLE_ALIASES) <= set(TABLES)
    assert not leaves & set(aliases.RENAMED) and not leaves & set(aliases.without_counterpart())
    assert not set(aliases.RENAMED) & set(aliases.without_counterpart())
    names = list(itertools.chain.from_iterable(names.split() for names in aliases.ALIASES.values()))
    assert len(names) == len(set(names))
