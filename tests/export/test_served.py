"""Which GGUF file of a run speaks for it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from test_verdict import FIGURES

from fasttune.export.served import served_gguf
from fasttune.runs import documents
from fasttune.runs.documents import ArtifactDocument
from fasttune.runs.store import Run


def a_run(tmp_path: Path, *names: str) -> Run:
    run = Run(tmp_path, "linzhi/001-fresh")
    run.exports.mkdir(parents=True)
    for age, name in enumerate(names):
        (run.exports / name).write_bytes(b"")
        os.utime(run.exports / name, (1000 + age, 1000 + age))
    return run


def test_the_file_of_the_modelfile_speaks_and_not_the_newest(tmp_path: Path) -> None:
    run = a_run(tmp_path, "linzhi-Q4_K_M.gguf", "linzhi-F16.gguf")
    (run.exports / "Modelfile").write_text('FROM ./linzhi-Q4_K_M.gguf\nTEMPLATE """x"""\n')
    assert served_gguf(run) == run.exports / "linzhi-Q4_K_M.gguf"


def test_without_a_modelfile_or_its_file_the_newest_speaks(tmp_path: Path) -> None:
    run = a_run(tmp_path, "linzhi-F16.gguf", "linzhi-Q8_0.gguf")
    assert served_gguf(run) == run.exports / "linzhi-Q8_0.gguf"
    for first in ("FROM ./gone.gguf", "FROM ./../../../etc/passwd", "FROM /etc/passwd", "", "\xff"):
        (run.exports / "Modelfile").write_bytes(first.encode("latin-1"))
        assert served_gguf(run) == run.exports / "linzhi-Q8_0.gguf"


def test_a_file_that_lost_most_of_the_training_speaks_only_where_it_is_named(tmp_path: Path) -> None:
    run = a_run(tmp_path, "linzhi-F16.gguf", "linzhi-Q2_K.gguf")
    (run.exports / "Modelfile").write_text("FROM ./linzhi-Q2_K.gguf\n")
    lost = replace(FIGURES, judgement="loses-training")
    document = ArtifactDocument("linzhi-Q2_K.gguf", "q2_k", "0", 4, run.id, None, {}, "", "", {}, lost)
    documents.write(run.exports / "linzhi-Q2_K.json", document)
    assert served_gguf(run) == run.exports / "linzhi-F16.gguf"
    (run.exports / "linzhi-F16.gguf").unlink()
    assert served_gguf(run) is None  # the adapter speaks then


def test_a_run_without_files_has_none(tmp_path: Path) -> None:
    assert served_gguf(Run(tmp_path, "linzhi/001-fresh")) is None
    assert served_gguf(a_run(tmp_path)) is None
