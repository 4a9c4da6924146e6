"""The reference of settings in docs/recipe.md is the one that their declarations give; the page's recipe loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY
from recipe_files import written

from fasttune.recipe.reference import main, reference
from fasttune.recipe.schema import KEYS


def test_reference_in_docs_is_fresh() -> None:
    page = (REPOSITORY / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page.partition("## All settings\n\n")[2] == reference(), (
        "run: python -m fasttune.recipe.reference docs/recipe.md"
    )
    assert all(f"| `{key.leaf}` |" in page for key in KEYS.values())


def test_recipe_of_the_docs_loads(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "recipe.md").read_text(encoding="utf-8")
    recipe = written(tmp_path, page.partition("```toml\n")[2].partition("```")[0])
    assert recipe.export.ollama == "linzhi"


def test_the_reference_replaces_the_section_of_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n\n## All settings\n\nold\n", encoding="utf-8")
    main([str(page)])
    assert page.read_text(encoding="utf-8") == f"# Head\n\n## All settings\n\n{reference()}"
    main([])
    assert capsys.readouterr().out == reference()
