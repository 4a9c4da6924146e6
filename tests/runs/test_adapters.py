"""The names of checkpoints and kept epochs, and those that stand for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.console import FasttuneError, UsageError
from fasttune.runs import adapters, checkpoints
from fasttune.runs.store import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three epochs, the second with the lowest held-out loss, and a checkpoint at step 10."""
    run = write_run(tmp_path)
    write_epochs(run, (1, 2, 2.5), (1.5, 1.2, 1.3))
    folder = run.checkpoints / "checkpoint-10"
    folder.mkdir(parents=True)
    for name in checkpoints.ADAPTER_FILES:
        (folder / name).write_text("{}")
    checkpoints.write_manifest(folder, 10, checkpoints.ADAPTER_FILES)
    return run


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("persona@10", "checkpoint-10"),
        ("persona/001/checkpoint-10", "checkpoint-10"),
        ("persona/001-fresh/checkpoints/checkpoint-10/", "checkpoint-10"),
        ("persona@epoch-2", "epoch-2"),
        ("persona/001@epoch-2.5", "epoch-2.5"),
        ("persona/001-fresh/epoch-1", "epoch-1"),
        ("persona/001-fresh/epochs/epoch-1/", "epoch-1"),
        ("persona@epoch-best", "epoch-2"),
    ],
)
def test_a_name_is_that_of_a_checkpoint_or_an_epoch(run: Run, name: str, part: str) -> None:
    found = adapters.named(name, run.root)
    assert adapters.is_named(name) and found is not None
    assert (found.run, found.part, found.folder.name) == (run, part, part) and found.folder.is_dir()
    assert found.name == {"checkpoint-10": "persona/001-fresh@10"}.get(part, f"persona/001-fresh@{part}")


@pytest.mark.parametrize("name", ["persona", "persona/001-fresh", "base", "a@b", "epoch-2", "@epoch-2", "persona@epoch-",
                                  "persona@1234567890", "x.gguf", "persona@epoch-1e3"])  # fmt: skip
def test_other_names_are_left_to_others(run: Run, name: str) -> None:
    assert not adapters.is_named(name) and adapters.named(name, run.root) is None


@pytest.mark.parametrize(
    ("name", "code", "known"),
    [
        ("persona@epoch-7", "no-such-epoch", "1, 2, 2.5"),
        ("persona@11", "no-checkpoint", "10"),
        ("nobody@epoch-2", "unknown-run", "persona"),
    ],
)
def test_a_refusal_says_what_there_is(run: Run, name: str, code: str, known: str) -> None:
    with pytest.raises(UsageError) as refused:
        adapters.named(name, run.root)
    (finding,) = refused.value.findings
    assert finding.code == code and known in finding.what + finding.fix
    assert code != "no-such-epoch" or finding.where == name


def test_a_damaged_epoch_is_not_used(run: Run) -> None:
    (run.epochs / "epoch-2" / checkpoints.WEIGHTS).write_text("other weights")
    with pytest.raises(FasttuneError) as refused:
        adapters.named("persona@epoch-2", run.root)
    assert refused.value.findings[0].code == "adapter-damaged"
