"""What `fasttune doctor` prints, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cli

from fasttune.doctor import child, examine
from fasttune.doctor.outcome import Check
from fasttune.terminal import examination

CHECKS = [
    Check("disk", "warning", "3 GiB are [free]", "a run takes more", "`du -sh runs/*`"),
    Check("hub", "ok", "answers"),
    Check("torch-build", "error", "a CPU build", "no GPU", "`make setup`"),
    Check("llama-cpp", "crashed", "the check itself failed: KeyError"),
    Check("triton-kernel", "not-applicable", "no GPU"),
]


def examined(_runs: Path, *, trains: bool) -> Iterator[Check]:
    yield from CHECKS if trains else CHECKS[:2]


def test_for_people(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "examine", examined)
    done = fasttune("doctor", NO_COLOR="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "warning: free disk and write speed: 3 GiB are [free]", "  a run takes more", "  hint: `du -sh runs/*`",
    ]  # fmt: skip
    assert "not applicable: a Triton kernel: no GPU" in lines
    assert "3 of 5 checks found something" in done.stderr
    quick = fasttune("doctor", "--quick")
    assert quick.returncode == 0 and "a CPU build" not in quick.stdout


def test_as_json_worst_first(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "examine", examined)
    done = fasttune("doctor", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert [one["code"] for one in document["findings"]] == ["torch-build", "llama-cpp", "disk"]
    assert [one["state"] for one in document["checks"]] == [check.state for check in CHECKS]
    assert list(document["checks"][0]) == ["name", "title", "state", "measured", "why", "fix", "seconds"]


def test_a_report_is_one_text_on_stdout(fasttune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "examine", examined)
    done = fasttune("doctor", "--report")
    assert done.stdout.startswith("- fasttune ") and "| ok | answers |" in done.stdout


def test_this_machine(fasttune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the training, and without a network. Each check is waited for however busy the machine is."""
    monkeypatch.setattr(examine, "SECONDS", 300.0)
    monkeypatch.setattr(child.run, "__defaults__", (300.0, child.COMMAND))
    done = fasttune("doctor", "--quick", "--json", HF_HUB_OFFLINE="1")
    document = json.loads(done.stdout)
    states = {one["name"]: one["state"] for one in document["checks"]}
    assert len(states) == 15 and "crashed" not in states.values()
    assert states["matrix-product"] == states["llama-cpp"] == states["package-set"] == "ok"
    assert states["hub"] == "not-applicable"
    assert not (tmp_path / "runs").exists()
