"""`auto` takes the smallest type that keeps enough, with an importance matrix, and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from exports import read_model, request, silent
from test_conversations import samples

from fasttune.export import Artifact, export, quantize, smallest, verdict
from fasttune.export.artifact import read_document
from fasttune.export.conversations import Conversations
from fasttune.export.write import WRITTEN_TYPES
from fasttune.recipe import schema

OWN = Conversations(samples(4, words=30), "held-out", samples(9)[4:])


@pytest.fixture
def few_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer types to try."""
    monkeypatch.setattr(smallest, "ORDER", ("q2_k", "q4_k_m", "f16"))


@pytest.mark.usefixtures("few_types")
def test_the_smallest_that_keeps_enough_is_taken(material: Path, tmp_path: Path) -> None:
    adapter, lines = material / "adapter", list[str]()
    (loose,) = export(request(tmp_path / "a", adapter, types=("auto",), conversations=OWN, keep=0.5), lines.append)
    strict = request(tmp_path / "b", adapter, types=("AUTO",), conversations=OWN, keep=0.998)
    (larger,) = export(strict, lines.append)
    assert loose.type == "q4_k_m" and larger.type == "f16"
    told = [line for line in lines if line.startswith("auto: ")]
    assert len(told) == 2 and "the smallest that keeps 50%" in told[0]
    assert "q2_k (" in told[0] and "q4_k_m (" in told[1]
    assert {path.name for path in larger.path.parent.iterdir()} == {
        larger.path.name, larger.path.with_suffix(".json").name, "Modelfile",
    }  # fmt: skip
    document = read_document(loose.path)
    assert document.figures is not None and document.figures.picked and document.imatrix == "own"
    assert read_document(larger.path).imatrix == "none"  # f16 takes none
    assert document.figures.measured_on == "held-out" and document.figures.conversations == 4
    again: list[str] = []
    assert export(strict, again.append) == [larger] and again == [f"{larger.path.name} already exists"]


def test_rows_that_256_does_not_divide_have_another_order() -> None:
    shape = read_model(None)[0].shape
    assert shape.hidden_size % 256 == 0 and smallest.order(shape) == smallest.ORDER
    assert smallest.order(replace(shape, hidden_size=896)) == tuple(one for one in smallest.ORDER if one != "q3_k_m")


def test_every_type_of_a_recipe_is_one_of_llama_cpps_and_auto_tries_them_by_size(
    exported: dict[str, Artifact], tmp_path: Path
) -> None:
    """Some are quantized, in this process, which spares the start of others."""
    types = [one for one in get_args(schema.Quantization) if one not in ("auto", *WRITTEN_TYPES)]
    assert set(smallest.ORDER) == {*types, "q8_0", "f16"}
    sizes = {name: exported[name].bytes for name in ("q8_0", "f16")}
    first = {}
    for name in ("q5_k_s", "q4_k_s", "iq4_xs", "q3_k_m", "q2_k"):
        assert quantize.main(str(exported["f16"].path), str(tmp_path / name), name) == 0
        sizes[name] = (tmp_path / name).stat().st_size
        first[name] = next(iter(quantize.stored(tmp_path / name).types))
    assert sorted(sizes, key=lambda name: sizes[name]) == [name for name in smallest.ORDER if name in sizes]
    assert (first["iq4_xs"], first["q3_k_m"], first["q5_k_s"]) == ("IQ4_XS", "Q3_K", "Q5_K")


@pytest.mark.usefixtures("few_types")
def test_a_run_that_learned_nothing_gets_q8_0_and_a_warning(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "LITTLE", 100.0)
    lines: list[str] = []
    (artifact,) = export(request(tmp_path, material / "adapter", types=("auto",)), lines.append)
    assert artifact.type == "q8_0" and artifact.is_served
    assert artifact.figures is not None and artifact.figures.judgement == "not-judged"
    assert sum("the run has changed next to nothing" in line for line in lines) == 1


def test_a_named_type_that_loses_most_is_written_and_not_served(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "HALF", 0.999)
    lines: list[str] = []
    lossy = request(tmp_path, material / "adapter", types=("q2_k", "f16"), keep=0.9995)
    artifacts = export(lossy, lines.append)
    assert [(one.type, one.is_served) for one in artifacts] == [("q2_k", False), ("f16", True)]
    assert any("q2_k rounds most of the training away" in line for line in lines)
    assert "linzhi-F16.gguf" in (tmp_path / "Modelfile").read_text(encoding="utf-8")


def test_another_importance_matrix_makes_another_file(material: Path, tmp_path: Path) -> None:
    adapter = material / "adapter"
    export(request(tmp_path, adapter, types=("q4_k_m",), conversations=OWN), silent)
    from fasttune.console import FasttuneError

    with pytest.raises(FasttuneError, match="already exists and was made from something else"):
        export(request(tmp_path, adapter, types=("q4_k_m",), conversations=OWN, imatrix="none"), silent)
    with pytest.raises(FasttuneError) as caught:
        export(request(tmp_path, adapter, types=("q2_k",), imatrix=str(tmp_path / "Modelfile")), silent)
    assert [finding.code for finding in caught.value.findings] == ["imatrix-unreadable"]
