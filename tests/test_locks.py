"""The locks of the set-up: exact, without contradiction, in accord with pyproject.toml and with what is installed."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCKS = REPOSITORY / ".setup"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# Requirements of the set that stay open on purpose: requirements.lock says why.
OPEN = {"certifi", "diffusers", "torchao", "torchvision", "wheel"}
if platform.machine() == "x86_64":
    OPEN.add("xformers")  # Unsloth asks for it on no other


def pins(*locks: str, python: str | None = None) -> dict[NormalizedName, str]:
    """Package -> version of the locks for one Python (the running one where none is named)."""
    environment: dict[str, Any] = dict(default_environment())
    if python:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[NormalizedName, str] = {}
    for lock in locks:
        for line in (LOCKS / f"requirements{lock}.lock").read_text(encoding="utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            (pin,) = requirement.specifier
            assert pin.operator == "==" and "*" not in pin.version, line
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = pin.version
    return found


def running_build() -> str:
    """`-cpu` or `-cuda`, the lock that belongs to the torch that is installed here."""
    file = importlib.metadata.distribution("torch").locate_file("torch/version.py")
    text = Path(str(file)).read_text(encoding="utf-8")
    return "-cpu" if re.search(r"^cuda.* = None$", text, re.MULTILINE) else "-cuda"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("build", ["-cpu", "-cuda"])
def test_lock_is_exact_and_without_contradiction(python: str, build: str) -> None:
    assert len(pins("", build, "-dev", python=python)) > 90


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_pyproject(python: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for name, extra in project["optional-dependencies"].items() if name != "xformers" for line in extra),
    ]
    locked = pins("", "-cuda", "-dev", python=python)
    for line in declared:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{line}: the lock has {version}"


def test_torchvision_only_beside_cuda() -> None:
    assert "torchvision" not in pins("", "-cpu", "-dev")
    assert "torchvision" in pins("-cuda")


def test_installed_versions_are_the_locked_ones() -> None:
    installed = {canonicalize_name(d.name): d.version.split("+")[0] for d in importlib.metadata.distributions()}
    wrong = {
        name: (version, installed.get(name))
        for name, version in pins("", running_build(), "-dev").items()
        if installed.get(name) != version
    }
    assert not wrong, f"locked, installed: {wrong}; `make test` mends it"


def test_open_requirements_are_the_known_ones() -> None:
    """What `pip check` would say, no more and no less than the lock's head explains."""
    locked = pins("", running_build(), "-dev")
    unmet = set()
    for name in locked:
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = locked.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                unmet.add(canonicalize_name(requirement.name))
    assert unmet == OPEN - set(pins("-cuda") if running_build() == "-cuda" else ())
