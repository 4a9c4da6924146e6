"""`auto` takes the smallest type that keeps enough, with an importance matrix, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import request, silent
from test_conversations import samples

from fasttune.export import export, smallest, verdict
from fasttune.export.artifact import read_document
from fasttune.export.conversations import Conversations

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
