"""The layers of DESIGN section 4: a file imports only from lower ranks, and each foreign library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fasttune"
RANKS = {
    "__init__": 0, "console": 1, "ask": 1.5,
    "strict": 1.2, "foreign": 1.2, "recipe": 2,
    "records": 2.2, "conversations": 2.4, "data": 3,
    "template": 3.5, "render": 4, "tokens": 4.5, "packing": 5, "runs": 6, "lineage": 6.5, "strategy": 7, "advice": 7.1, "starter": 7.2, "questions": 7.4, "menu": 7.6,
    "memory": 7.9, "processes": 8, "layers": 8, "engine": 8.1, "model": 9, "provenance": 9, "live": 9, "sharing": 9, "proof": 9.3, "trainer": 9.6,
    "export": 10, "train": 10, "arms": 10.5, "evaluate": 11, "chat": 11, "show": 11, "bench": 11,
    "cli": 12, "__main__": 13,
}  # fmt: skip
HOMES = {
    "click": {"cli"},
    "rich": {"console", "show", "live", "lineage"},
    "questionary": {"ask"},
    "prompt_toolkit": {"ask"},
    "unsloth": {"model"},
    "peft": {"model", "arms"},
    "trl": {"arms"},
    "gguf": {"export"},
    "llama_cpp": {"export"},
    "ollama": {"export"},
    "transformers": {"train", "trainer", "model", "export", "arms"},
    "torch": {"engine", "layers", "model", "trainer", "processes", "sharing", "provenance", "export", "arms"},
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "tiny" not in path.parts]


def module(path: Path) -> str:
    """`export` for every file of the export folder, else the file's name."""
    return "export" if path.parent.name == "export" else path.stem


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, at its top or inside functions, `if TYPE_CHECKING` included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_file_has_a_rank() -> None:
    assert {module(path) for path in FILES} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = module(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fasttune" and len(parts) > 1 and parts[1] in RANKS and not own == parts[1] == "export":
            assert RANKS[parts[1]] < RANKS[own], f"{own} (rank {RANKS[own]}) imports {parts[1]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_foreign_libraries_stay_at_home(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        assert module(path) in HOMES.get(library, {module(path)}), f"{path.name} imports {library}"


def loaded(statement: str) -> set[str]:
    """The top-level modules in sys.modules after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_files_below_the_layers_need_no_torch() -> None:
    light = [name for name, rank in RANKS.items() if rank < RANKS["layers"] and not name.startswith("__")]
    modules = loaded("\n".join(f"import fasttune.{name}" for name in light))
    assert not modules & {"torch", "transformers", "unsloth", "numpy", "peft"}


def test_importing_the_package_imports_nothing_else() -> None:
    assert not loaded("import fasttune") & {"torch", "rich", "click"}
