"""The reference of all settings in docs/recipe.md, generated from their declarations.

`python -m fasttune.recipe.reference docs/recipe.md` writes it into that page; a test compares the two.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fasttune.recipe.aliases import ALIASES
from fasttune.recipe.schema import KEYS, TABLES, Key, Recipe
from fasttune.recipe.values import as_toml, describe


def reference() -> str:
    """Every setting, and every other trainer's name for it, as Markdown: the second half of docs/recipe.md."""
    parts: list[str] = []
    for name, table in {"": Recipe, **TABLES}.items():
        rows = [row(key) for key in KEYS.values() if key.table == name]
        parts += [f"### [{name}]" if name else "### Top of the file", (table.__doc__ or "").split("\n")[0]]
        parts.append("\n".join(["| key | takes | default | meaning |", "|---|---|---|---|", *rows]))
    aliases = [f"| `{key}` | {', '.join(names.split())} |" for key, names in ALIASES.items()]
    parts += ["### Names in other trainers", "They are refused with the name to use here."]
    parts.append("\n".join(["| here | elsewhere |", "|---|---|", *aliases]))
    return "\n\n".join(parts) + "\n"


def row(key: Key) -> str:
    """The row of the reference's table for a setting."""
    default = "unset" if key.default is None else f"`{as_toml(key.default)}`"
    takes = ", ".join([describe(key.hint), *(f"{sign} {bound}" for sign, bound in key.bounds.items())])
    return f"| `{key.leaf}` | {takes} | {'**required**' if key.required else default} | {key.help} |"


def main(arguments: Sequence[str]) -> None:
    """Print the reference, or replace the section "All settings" of the page that is named."""
    os.environ["FASTTUNE_LANG"] = "en"
    if not arguments:
        sys.stdout.write(reference())
        return
    page = Path(arguments[0])
    head, heading, _old = page.read_text(encoding="utf-8").partition("## All settings\n")
    page.write_text(f"{head}{heading}\n{reference()}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
