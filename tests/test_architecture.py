"""What import-linter's contracts in pyproject.toml can't say: homes of foreign libraries, and what may load torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "fasttune"
# The modules, or sub-packages, that may import a library (ARCHITECTURE.md, "One home per foreign library").
HOMES = {
    "babel": set(),
    "bitsandbytes": {"doctor.trials"},
    "click": {"cli", "terminal.command_line"},
    "gguf": {"export"},
    "httpx": {"export"},
    "huggingface_hub": {"training.hub"},
    "jinja2": {"data.chat_template", "data.rendering", "data.plain_tokenizer", "analysis.page", "web.pages"},
    "llama_cpp": {"export"},
    "markupsafe": {"analysis.page", "web.curves"},
    "modelscope": {"training.hub"},
    "numpy": {"export"},
    "ollama": {"export"},
    "optuna": {"sweep.study"},
    "peft": {"training.model", "bench.engines"},
    "prompt_toolkit": {"terminal.prompts", "terminal.chat_input"},
    "psutil": {"machine", "training.device"},
    "questionary": {"terminal.prompts"},
    "rensa": {"data.near_duplicates"},
    "rich": {"console", "terminal", "training.progress"},
    "sacrebleu": {"analysis.chrf"},
    "sqlalchemy": {"sweep.study"},
    "starlette": {"web"},
    "tokenizers": {"data.plain_tokenizer", "analysis.speakers"},
    "torch": {"training", "export", "bench", "doctor.trials", "doctor.triton_kernel"},
    "triton": {"doctor.triton_kernel"},
    "transformers": {"training", "export", "bench"},
    "trl": {"bench.engines"},
    "unsloth": {"training.model", "training.cuda_layers"},
    "uvicorn": {"web.server"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
# Loaded by `fasttune --help`, `plan`, `runs` and `init`: everything below training, and what a terminal shows.
WITHOUT_TORCH = [
    path for path in FILES if path.relative_to(PACKAGE).parts[0] not in ("training", "export", "analysis", "bench", "sweep")
    and path.name not in ("__main__.py", "chat.py", "triton_kernel.py")
]  # fmt: skip


def module(path: Path) -> str:
    """`training.model` for fasttune/training/model.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, at its top or inside functions, `if TYPE_CHECKING` included."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_foreign_libraries_stay_at_home() -> None:
    strangers = [
        f"{module(path)} imports {library}"
        for path in FILES
        for library in imports(path) & HOMES.keys()
        if not any(f"{module(path)}.".startswith(f"{home}.") for home in HOMES[library])
    ]
    assert len(FILES) > 200 and not strangers


def calls(path: Path, name: str) -> list[ast.Call]:
    """The calls of a method of this name in a file."""
    return [node for node in nodes(path) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == name]


def test_nothing_is_loaded_that_may_run_code_of_its_folder() -> None:
    """SECURITY.md: without trust_remote_code=False transformers asks on stdin whether it may."""
    loaders = [call for path in FILES for call in calls(path, "from_pretrained")]
    assert len(loaders) > 3
    for call in loaders:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code") == "False", ast.unparse(call)


def test_templates_are_rendered_within_limits() -> None:
    assert [module(path) for path in FILES if calls(path, "apply_chat_template")] == ["data.rendering"]


def loaded(statement: str) -> set[str]:
    """The top-level modules in sys.modules after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_planning_and_the_terminal_load_no_torch() -> None:
    assert len(WITHOUT_TORCH) > 30
    modules = loaded("\n".join(f"import fasttune.{module(path).removesuffix('.__init__')}" for path in WITHOUT_TORCH))
    assert not modules & {"torch", "transformers", "unsloth", "numpy", "peft", "gguf", "ollama"}


def test_a_run_without_a_terminal_loads_no_prompts() -> None:
    """Every rank of a torchrun imports these."""
    modules = loaded("import fasttune.cli, fasttune.pipeline, fasttune.terminal.tables")
    assert not modules & {"questionary", "prompt_toolkit"}


def test_importing_the_package_imports_nothing_else() -> None:
    assert not loaded("import fasttune") & {"torch", "rich", "click"}


# Files of more than LONGEST_FILE lines, and why they are longer.
LONG_FILES = {
    "runs/documents.py": "the JSON documents of a run, which are written and read in one place",
    "recipe/schema.py": "every setting with its default, bounds and meaning is declared here and nowhere else",
    "console.py": "whatever is said to people goes through it, in one language and one encoding",
}
LONGEST_FILE, LONGEST_FUNCTION, MOST_LONG_FUNCTIONS = 350, 35, 5


def test_files_and_functions_stay_short() -> None:
    """CONTRIBUTING.md, "What a change looks like"."""
    lines = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    long = {str(path.relative_to(PACKAGE)) for path, text in lines.items() if text.count("\n") > LONGEST_FILE}
    assert long == set(LONG_FILES)
    functions = {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path, text in lines.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    }
    assert len(functions) <= MOST_LONG_FUNCTIONS, sorted(functions)
