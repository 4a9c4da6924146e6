"""Every function of Unsloth that fasttune calls is there and takes what it is given: an update that breaks us is said in
one sentence. Unsloth's sources are read and not imported: its GPU part can't be without a GPU, and takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from fasttune.machine import installed_version

LOADED = (
    "model_name", "max_seq_length", "dtype", "load_in_4bit", "use_exact_model_name", "local_files_only",
    "trust_remote_code",
)  # fmt: skip
LORA = (
    "model", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_gradient_checkpointing", "random_state",
)  # fmt: skip
SWITCH = ("model", "use_gradient_checkpointing")
# (package, file, function, the arguments that it is given)
CALLS = [
    ("unsloth", "models/loader.py", "FastLanguageModel.from_pretrained", LOADED),
    ("unsloth", "models/loader.py", "FastLanguageModel.for_training", SWITCH),
    ("unsloth", "models/llama.py", "FastLlamaModel.get_peft_model", LORA),
    ("unsloth", "models/llama.py", "FastLlamaModel.for_training", SWITCH),
    ("unsloth", "models/llama.py", "FastLlamaModel.for_inference", ("model",)),
    ("unsloth_zoo", "cpu/loader.py", "FastCPUModel.from_pretrained", LOADED),
    ("unsloth_zoo", "cpu/loader.py", "FastCPUModel.get_peft_model", LORA),
    ("unsloth_zoo", "cpu/loader.py", "FastCPUModel.for_inference", ("model",)),
]


def definition(package: str, file: str, name: str) -> ast.FunctionDef | None:
    """A function or a method, `Class.method`, in an installed package's file; None where it is gone."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / file
    if not path.is_file():
        return None
    nodes: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    *classes, function = name.split(".")
    for one in classes:
        nodes = next((node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == one), [])
    return next((node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function), None)


def broken(package: str, file: str, name: str, arguments: tuple[str, ...]) -> str:
    """In one sentence what an update of the package has broken; "" where nothing is."""
    where = f"{package} {installed_version(package)}: {file}"
    function = definition(package, file, name)
    if function is None:
        return f"{where} has no {name} any more, which fasttune calls"
    taken = {one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    missing = [one for one in arguments if one not in taken and function.args.kwarg is None]
    return f"{where}: {name} no longer takes {', '.join(missing)}, which fasttune gives" if missing else ""


@pytest.mark.parametrize(("package", "file", "name", "arguments"), CALLS, ids=lambda value: str(value)[:40])
def test_what_is_called_is_there(package: str, file: str, name: str, arguments: tuple[str, ...]) -> None:
    assert broken(package, file, name, arguments) == ""


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("FastLlamaModel.gone", (), "has no FastLlamaModel.gone any more"),
        ("FastLlamaModel.for_training", ("model", "checkpointing"), "no longer takes checkpointing"),
    ],
)
def test_what_is_not_there_is_said(name: str, arguments: tuple[str, ...], said: str) -> None:
    assert said in broken("unsloth", "models/llama.py", name, arguments)
