"""The installed set against a lock, and against a wheel's requirements."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fasttune.doctor import packages
from fasttune.doctor.situation import Situation

CPU = Situation(None, "", "", False, Path("runs"))


def write_locks(folder: Path, *lines: str) -> None:
    (folder / ".setup").mkdir()
    (folder / ".setup" / "install.py").touch()
    (folder / ".setup" / "requirements-cpu.lock").write_text("# nothing\n", encoding="utf-8")
    (folder / ".setup" / "requirements.lock").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packages, "CLONE", tmp_path)
    return tmp_path


def test_a_set_as_locked(clone: Path) -> None:
    click, torch = metadata.version("click"), metadata.version("torch").split("+")[0]
    write_locks(clone, "# a comment", "", f"click=={click}  # why", f"torch=={torch}", "tomli==1; python_version < '3'")
    found = packages.package_set(CPU)
    assert (found.state, found.measured) == ("ok", "2 packages as locked")


def test_another_version_and_a_missing_package(clone: Path) -> None:
    write_locks(clone, "click==0.1", "no-such-package==2.0")
    found = packages.package_set(CPU)
    assert found.state == "error"
    assert f"click {metadata.version('click')} instead of 0.1" in found.measured
    assert "no-such-package missing instead of 2.0" in found.measured
    assert found.fix == "`python -m pip install --no-deps 'click==0.1' 'no-such-package==2.0'`"


def test_only_another_version_is_a_warning(clone: Path) -> None:
    write_locks(clone, "click==0.1")
    assert packages.package_set(CPU).state == "warning"


def test_torch_is_the_set_ups_decision(clone: Path) -> None:
    write_locks(clone, "torch==0.1")
    assert "pip install --no-deps" not in packages.package_set(CPU).fix


def test_outside_a_clone_the_wheels_own_ranges_count(clone: Path) -> None:
    assert packages.package_set(CPU).state == "ok"
    bad = packages.against_ranges(["click<0.2", "pytest; extra == 'dev'", "rich>=1"])
    assert bad.state == "warning" and "click" in bad.measured and "1 of 2 packages" in bad.measured


def test_this_environment_has_the_locked_set() -> None:
    """What the suite runs in is what is tested; a build of torch for CUDA is compared with its own lock."""
    assert packages.locked(Path(__file__).parents[2] / ".setup" / "requirements.lock")
    assert packages.differing([Requirement("click>=1")]) == []
