"""The documents of a run: round trips, documents of the version before they had a format, newer and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import PLAN, PROVENANCE, write_run

from fasttune.console import FasttuneError, Finding
from fasttune.recipe.schema import Setting
from fasttune.runs import documents, store
from fasttune.runs.documents import (
    ArtifactDocument,
    CheckBatch,
    Continuation,
    Manifest,
    MergedDocument,
    PlanDocument,
    PrefixDifference,
    Probe,
    Provenance,
    RowRecord,
    RowsFrom,
    Scores,
    StartRecord,
    TrainerStateFigures,
    UnloggedMetrics,
)
from fasttune.runs.outcomes import (
    ArmFacts,
    EpochScores,
    FactResult,
    FactScores,
    HeldOutLosses,
    Pick,
    Picks,
    RuleResult,
    SampleLoss,
)

OLD = Path(__file__).parent / "old_documents"  # of a run that was trained before documents had a format number
KINDS: dict[str, type[Any]] = {
    "plan.json": PlanDocument, "provenance.json": Provenance, "scores.json": Scores, "proof.json": CheckBatch,
    "window.json": UnloggedMetrics, "manifest.json": Manifest, "artifact.json": ArtifactDocument,
    "trainer_state.json": TrainerStateFigures,
}  # fmt: skip
EVERY = [
    PLAN,
    replace(PLAN, parent="persona/001-fresh", start="checkpoint", start_step=6, system="你是小灯。", settings=(
        Setting("data.train", ["a.jsonl", "b.jsonl"], "recipe"), Setting("lora.r", 8, "default"),
        Setting("train.early_stopping_patience", None, "default"), Setting("train.shared_prefix", True, "override"),
    )),
    PROVENANCE,
    replace(
        PROVENANCE, system="", parent="persona/001-fresh", sharing_check=PrefixDifference(1e-6, 2e-5),
        rows=RowRecord(4096, 8192, RowsFrom(2, 6000), (RowsFrom(5, 5000), RowsFrom(7.5, 4096)), 8192, True),
        starts=(StartRecord(1, {"import": 17.7, "load": 0.3}, 66, 66), StartRecord(9, {}, 66, 0)),
        continuations=(Continuation("runs/a/checkpoints/checkpoint-6", 0.5, 0.5, 6, 1e-4, 2e-4), Continuation("b", None, None)),
    ),
    Scores(()),
    Scores((Probe("你是谁？", "一个助手。", "小灯。"), Probe("Who?", "A model.")), "persona-Q8_0.gguf"),
    Scores((), None),
    Scores((), None, FactScores(
        "facts.toml", "0" * 64, 64, {"base": ArmFacts(0, 1, 0, 0.0, 0), "tuned": ArmFacts(1, 0, 0, 2 / 3, 1)},
        (FactResult("cat", "猫叫定影", "data", ("a?", "b?", "c?"), {"base": "lost", "tuned": "kept"}, {
            "base": ("", "?", "猫"), "tuned": ("定影", "定影", "猫")}),),
        (RuleResult("never-ai", "不说语言模型", {"base": (), "tuned": ("语言模型",)}),),
    )),
    Scores((), None, held_out=HeldOutLosses("0" * 64, (SampleLoss("val.jsonl:3", 2.5, 3.5), SampleLoss("val.jsonl:4", 1.0)))),
    Scores((), documents.NOT_ASKED, None, (
        EpochScores(6, "0" * 64, 1.5, ("你是谁？",), ("小灯。",), 64), EpochScores(9, "1" * 64, None),
    )),
    Picks((Pick("2026-03-01T10:00:00+00:00", None, 2.5, 9), Pick("2026-03-01T10:00:01+00:00", 2.5, None, 12))),
    CheckBatch(6, 12, 1e-4, 0.0139, ("a.jsonl:1", "a.jsonl:2"), "0" * 64, "1" * 64, "cpu", {"torch": "2.13.0"}),
    UnloggedMetrics(1.5, 10, 12, 90, 40, 4, 1, 0.2, 42840),
    Manifest(6, {"optimizer.pt": "0" * 64}),
    ArtifactDocument(
        "persona-Q8_0.gguf", "q8_0", "0" * 64, 4932192, "persona/001-fresh", None,
        {"tokens": {"texts": 17, "equal": True}}, "builtin:tiny", "1" * 64, {"gguf": "0.19.0"},
    ),
    MergedDocument("0" * 64, "persona/001-fresh", "builtin:tiny"),
]  # fmt: skip


def refusal(path: Path, kind: type[Any]) -> Finding:
    """The one finding with which a document is refused."""
    with pytest.raises(FasttuneError) as refused:
        documents.read(path, kind)
    (finding,) = refused.value.findings
    assert finding.where == str(path) and finding.fix and "\n" not in finding.what
    return finding


@pytest.mark.parametrize("document", EVERY, ids=lambda document: type(document).__name__)
def test_what_is_written_is_read(tmp_path: Path, document: Any) -> None:
    documents.write(tmp_path / "x.json", document)
    assert documents.read(tmp_path / "x.json", type(document)) == document
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["format"] == documents.FORMAT


@pytest.mark.parametrize("name", KINDS)
def test_a_document_without_a_format_number_is_read_whole(tmp_path: Path, name: str) -> None:
    """Every field that the earlier version wrote is read, and written again under its name."""
    document = documents.read(OLD / name, KINDS[name])
    documents.write(tmp_path / name, document)
    before = json.loads((OLD / name).read_text(encoding="utf-8"))
    after = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    assert "format" not in before and after.pop("format") == 1
    if name == "trainer_state.json":  # Hugging Face's own file, of which four fields are read
        before = {key: before[key] for key in ("global_step", "log_history", "best_metric", "best_global_step")}
    added: dict[str, Any] = {}
    if name == "provenance.json":
        added = {
            "sharing_check": None,
            "packing_check": None,
            "cuda_graphs": "",
            "cuda_graphs_off": "",
            "longest_answer": 0,
            "base": before["base"] | {"folder": ""},
        }
    if name == "plan.json":
        added = {"start_epoch": None, "general_samples": 0, "with_facts": None}
    if name == "scores.json":
        unknown = {"base_cut": False, "trained_cut": False, "is_trained": False}
        probes = [one | unknown for one in before["probes"]]
        added = {"probes": probes, "facts": None, "epochs": [], "exports": [], "held_out": None, "general": []}
    if name == "proof.json":
        added = {"dtype": ""}
    if name == "artifact.json":
        added = {"figures": None, "imatrix": "none", "ollama": None, "adapter": ""}
    assert after == before | added


def test_values_of_an_old_run() -> None:
    plan = documents.read(OLD / "plan.json", PlanDocument)
    assert (plan.parent, plan.start, plan.start_step) == ("quickstart/001-fresh", "checkpoint", 290)
    assert plan.values["data.train"] == ["data/quickstart/train.jsonl"]
    provenance = documents.read(OLD / "provenance.json", Provenance)
    assert provenance.rows == RowRecord(65536, 65536)
    assert [one.from_ for one in provenance.continuations] == ["runs/quickstart/001-fresh/checkpoints/checkpoint-290"]
    assert documents.read(OLD / "scores.json", Scores).answered_by == "quickstart-Q8_0.gguf"


def test_provenance_from_before_the_row_budget_was_recorded_in_full(tmp_path: Path) -> None:
    document = json.loads((OLD / "provenance.json").read_text(encoding="utf-8"))
    for key in (
        "rows_chosen",
        "rows_measured",
        "rows_cut",
        "rows_asked",
        "gradient_checkpointing",
        "starts",
        "continuations",
    ):
        del document[key]  # fmt: skip
    (tmp_path / "provenance.json").write_text(json.dumps(document), encoding="utf-8")
    provenance = documents.read(tmp_path / "provenance.json", Provenance)
    assert provenance.rows == RowRecord(65536) and provenance.starts == () and provenance.continuations == ()


def test_the_row_budget_stands_among_the_other_fields(tmp_path: Path) -> None:
    documents.write(
        tmp_path / "provenance.json", replace(PROVENANCE, rows=RowRecord(512, rows_cut=(RowsFrom(2.5, 512),)))
    )
    written = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert written["tokens_per_row"] == 512 and written["rows_cut"] == [{"step": 2.5, "tokens_per_row": 512}]
    assert "rows" not in written


@pytest.mark.parametrize("name", KINDS)
def test_a_newer_format_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content = json.loads((OLD / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps(content | {"format": documents.FORMAT + 1}), encoding="utf-8")
    finding = refusal(tmp_path / name, KINDS[name])
    assert finding.code == "document-newer"
    assert finding.what == "this was written by a newer fasttune (format 2; this version reads up to 1)"
    assert finding.fix == "update fasttune"


def fields_of(content: Any, name: str = "") -> list[tuple[str, list[str | int]]]:
    """(dotted name, path of keys) of every field in a JSON object and in the first element of its lists."""
    found: list[tuple[str, list[str | int]]] = []
    inner: list[tuple[str, str | int, Any]] = []
    if isinstance(content, dict):
        inner = [(f"{name}.{key}" if name else key, key, value) for key, value in content.items()]
    elif isinstance(content, list) and content:
        inner = [(f"{name}[0]", 0, content[0])]
    for full_name, key, value in inner:
        found.append((full_name, [key]))
        found += [(deeper, [key, *path]) for deeper, path in fields_of(value, full_name)]
    return found


# Fields that hold any JSON: the value of a setting, a GPU or processor, the figures of a file's checks.
OF_ANY_TYPE = ("settings[0].value", "device.", "checks.")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "trainer_state.json"])
def test_a_field_of_another_type_is_named(tmp_path: Path, name: str) -> None:
    content = (OLD / name).read_text(encoding="utf-8")
    fields = [one for one in fields_of(json.loads(content)) if not one[0].startswith(OF_ANY_TYPE)]
    assert len(fields) > 1
    for full_name, keys in fields:
        damaged = json.loads(content)
        holder = damaged
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = [None]  # fits no field: no list here is of None
        (tmp_path / name).write_text(json.dumps(damaged), encoding="utf-8")
        finding = refusal(tmp_path / name, KINDS[name])
        assert finding.code == "document-damaged"
        assert full_name.startswith(
            finding.what.removeprefix("its field ").removesuffix(" is missing or damaged").split("[0]")[0]
        )


@pytest.mark.parametrize(
    ("name", "keys", "named"),
    [
        ("plan.json", ["total_steps"], "total_steps"),
        ("plan.json", ["settings", 0, "key"], "settings[0].key"),
        ("provenance.json", ["base", "fingerprint"], "base.fingerprint"),
        ("provenance.json", ["tokens_per_row"], "tokens_per_row"),
        ("scores.json", ["probes", 1, "question"], "probes[1].question"),
        ("proof.json", ["random_state"], "random_state"),
        ("window.json", ["tokens_seen"], "tokens_seen"),
        ("manifest.json", ["sha256"], "sha256"),
        ("artifact.json", ["inputs"], "inputs"),
        ("trainer_state.json", ["global_step"], "global_step"),
    ],
)
def test_a_missing_field_is_named(tmp_path: Path, name: str, keys: list[str | int], named: str) -> None:
    content = json.loads((OLD / name).read_text(encoding="utf-8"))
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    del holder[keys[-1]]
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    finding = refusal(tmp_path / name, KINDS[name])
    assert (finding.code, finding.what) == ("document-damaged", f"its field {named} is missing or damaged")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "the file is missing"),
    "empty": (lambda path: path.write_bytes(b""), "Expecting value"),
    "cut": (cut, "line"),
    "no UTF-8": (lambda path: path.write_bytes(b"\xff\xfe"), "utf-8"),
    "no object": (lambda path: path.write_text("[]"), "this is not a JSON object"),
    "a folder": (make_folder, "Is a directory"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, name: str) -> None:
    harm, words = DAMAGES[name]
    documents.write(tmp_path / "plan.json", PLAN)
    harm(tmp_path / "plan.json")
    finding = refusal(tmp_path / "plan.json", PlanDocument)
    assert finding.code == "document-damaged" and words in finding.what


def test_fields_of_a_later_version_with_the_same_format_are_left_out(tmp_path: Path) -> None:
    content = json.loads((OLD / "window.json").read_text(encoding="utf-8"))
    (tmp_path / "window.json").write_text(json.dumps(content | {"later": 1}), encoding="utf-8")
    assert documents.read(tmp_path / "window.json", UnloggedMetrics) == documents.read(
        OLD / "window.json", UnloggedMetrics
    )


# A run's own --------------------------------------------------------------------------------------------------------


def test_provenance_is_added_to(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, second = StartRecord(1, {"load": 0.3}, 10, 10), StartRecord(3, {"load": 0.2}, 10, 0)
    documents.add_start(run, first)
    documents.add_start(run, second)
    documents.add_continuation(run, Continuation("a", 0.5, 0.5))
    documents.update_provenance(run, rows=RowRecord(99))
    found = documents.read_provenance(run)
    assert found == replace(
        PROVENANCE, starts=(first, second), continuations=(Continuation("a", 0.5, 0.5),), rows=RowRecord(99)
    )


def test_a_run_is_answered_once_its_scores_say_by_what(tmp_path: Path) -> None:
    run = store.create(tmp_path, "persona", "fresh")
    assert not documents.is_answered(run)
    for answered_by, expected in ((documents.NOT_ASKED, False), ("adapter", True), (None, True)):
        documents.write(run.scores, Scores((), answered_by))
        assert documents.is_answered(run) is expected


def test_overrides_that_give_a_runs_settings_again(tmp_path: Path) -> None:
    run = store.create(tmp_path, "persona", "fresh")
    settings = (
        Setting("name", "persona", "recipe"), Setting("lora.r", 4, "override"), Setting("lora.alpha", 8, "default (2 × r)"),
        Setting("data.system", "你是小灯。", "parent run persona/001-fresh"), Setting("train.seed", 42, "default"),
        Setting("export.gguf", ["f16", "q8_0"], "override"), Setting("train.until.loss", None, "override"),
    )  # fmt: skip
    documents.write(run.plan, replace(PLAN, settings=settings))
    assert documents.recorded_overrides(run) == ["lora.r=4", 'data.system="你是小灯。"', 'export.gguf=["f16", "q8_0"]']
