"""What is put into Unsloth's model on a GPU: how a row is described to it. The model itself runs in test_gpu_rows.py."""

from __future__ import annotations

import ast
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from fasttune.console import FasttuneError
from fasttune.data.tokenize import Example
from fasttune.training import cuda_layers, engine, packing


def test_how_a_row_is_described_to_unsloth() -> None:
    """Its length on the host for every row, and the layout where it holds more than one sample."""
    examples = [Example(str(n), (*range(100), 200 + n, 7, 8), ((101, 103),)) for n in range(4)]
    for samples, shares, packed in ((range(4), True, True), (range(4), False, True), ([0], True, False)):
        (row,) = packing.plan_step(examples, list(samples), 4096, shared_prefix=shares).rows
        layout = engine.collate(row, examples).layout
        arguments = cuda_layers.layout_arguments(layout)
        assert arguments["packed_seq_lengths"].tolist() == [row.tokens]
        assert arguments["packed_seq_lengths"].device.type == "cpu"  # on a GPU Unsloth would wait for it
        again = cuda_layers.layout_arguments(engine.collate(row, examples).layout)
        assert again["packed_seq_lengths"] is arguments["packed_seq_lengths"]  # a new one is copied, in a graph too
        assert ("prefix_seg_info" in arguments) == packed and arguments.get("prefix_seg_info", layout) is layout


def looks_both_up(attention: Any, x: Any) -> Any:
    """An attention's forward pass as Unsloth's: from q, k and v to the output."""
    return attention.apply_o(attention, getattr(attention, "apply_qkv", attention.q_proj)(attention, x))


def calls_its_own(attention: Any, x: Any) -> Any:
    """The same that no longer looks up who computes q, k and v."""
    return attention.apply_o(attention, attention.q_proj(x))


def unsloth_with(signatures: dict[str, tuple[str, ...]], attention: Any = looks_both_up) -> Any:
    """What `importlib` would find of an Unsloth that has these functions, and this forward pass of an attention."""
    modules: dict[str, SimpleNamespace] = {}
    for path, names in signatures.items():
        module, name = path.split(":")
        holder = modules.setdefault(module, SimpleNamespace())
        *classes, function = name.split(".")
        for one in classes:
            vars(holder).setdefault(one, SimpleNamespace())
            holder = getattr(holder, one)
        parameters = [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in names]

        def called() -> None: ...

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        setattr(holder, function, called)
    if attention:
        module, name = cuda_layers.ATTENTION.split(":")
        setattr(modules.setdefault(module, SimpleNamespace()), name, attention)

    def import_module(name: str) -> SimpleNamespace:
        if name not in modules:
            raise ImportError(name)
        return modules[name]

    return SimpleNamespace(import_module=import_module)


def test_a_known_unsloth_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_layers, "importlib", unsloth_with(cuda_layers.USED))
    cuda_layers.require_known_unsloth()


@pytest.mark.parametrize("path", cuda_layers.USED)
def test_an_unsloth_without_what_is_called_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    others = {name: parameters for name, parameters in cuda_layers.USED.items() if name != path}
    changes = [others]
    if cuda_layers.USED[path]:
        changes.append(cuda_layers.USED | {path: ("something_else", *cuda_layers.USED[path])})
    for changed in changes:
        monkeypatch.setattr(cuda_layers, "importlib", unsloth_with(changed))
        with pytest.raises(FasttuneError) as refused:
            cuda_layers.require_known_unsloth()
        (finding,) = refused.value.findings
        assert finding.code == "unsloth-changed" and f"{path} has changed" in finding.what
        assert changed is others or "something_else" in finding.why


@pytest.mark.parametrize(("attention", "missing"), [(calls_its_own, ".apply_qkv"), (None, "")])
def test_an_unsloth_that_would_not_call_what_is_put_in_is_refused(
    monkeypatch: pytest.MonkeyPatch, attention: Any, missing: str
) -> None:
    """It would train, slower and without a word."""
    monkeypatch.setattr(cuda_layers, "importlib", unsloth_with(cuda_layers.USED, attention))
    with pytest.raises(FasttuneError, match=f"{cuda_layers.ATTENTION}{missing} has changed"):
        cuda_layers.require_known_unsloth()


def test_whatever_is_taken_from_unsloth_is_known() -> None:
    """Each name that cuda_layers.py imports, of a module each that it reads or sets, and both passes of a function."""
    tree = ast.parse(inspect.getsource(cuda_layers))
    taken = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unsloth"):
            taken |= {(str(node.module), alias.name) for alias in node.names}
    modules = {path.split(":")[0] for path in cuda_layers.USED}
    names = {f"{module}:{name}" for module, name in taken if f"{module}.{name}" not in modules}
    for module, name in taken:
        if f"{module}.{name}" in modules:
            read = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            names |= {f"{module}.{name}:{node.attr}" for node in read if ast.unparse(node.value) == name}
    known = {path.split(".forward")[0] for path in cuda_layers.USED}
    assert names <= known and len(names) >= 9, names - known
    passes = [path for path in cuda_layers.USED if path.endswith(".forward")]
    assert all(path.replace(".forward", ".backward") in cuda_layers.USED for path in passes) and len(passes) == 3
