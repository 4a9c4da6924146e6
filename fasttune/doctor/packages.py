"""The installed packages against what fasttune is tested with: the lock of a clone, else the wheel's own ranges."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from fasttune.console import _, ngettext
from fasttune.doctor.outcome import Check, ok
from fasttune.doctor.situation import CLONE, Situation, set_up_command

NAME = "package-set"
PYTHONS = ((3, 10), (3, 14))  # for which the locked set has wheels
SHOWN = 6  # differing packages that are named


def package_set(situation: Situation) -> Check:
    """Each package of the lock, or of the wheel's requirements, against what is installed."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        what = _("this is Python {version}; fasttune's packages exist for 3.10 to 3.14", version=sys.version.split()[0])
        return Check(NAME, "error", what, fix=_("make a new environment: `make setup PYTHON=python3.12`"))
    build = "cuda" if situation.torch_cuda else "cpu"
    locks = [CLONE / ".setup" / name for name in ("requirements.lock", f"requirements-{build}.lock")]
    if not all(lock.is_file() for lock in locks):
        return against_ranges(metadata.requires("fasttune") or [])
    requirements = [requirement for lock in locks for requirement in locked(lock)]
    wrong = differing(requirements)
    if not wrong:
        count = len(requirements)
        return ok(NAME, ngettext("{n} package as locked", "{n} packages as locked", count))
    return difference(wrong, count=len(requirements))


def against_ranges(lines: Iterable[str]) -> Check:
    """The check outside a clone: the requirements of the installed fasttune, extras left out."""
    stated = [Requirement(line) for line in lines]
    requirements = [one for one in stated if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = differing(requirements)
    if wrong:
        return difference(wrong, count=len(requirements))
    count = len(requirements)
    return ok(NAME, ngettext("{n} required package as tested", "{n} required packages as tested", count))


def difference(wrong: list[tuple[Requirement, str]], *, count: int) -> Check:
    """The result where packages are missing or of another version. Those that a training computes with are errors
    where they are missing."""
    named = [
        _("{package} {installed} instead of {requested}", package=one.name, installed=installed or _("missing"),
          requested=str(one.specifier).removeprefix("=="))
        for one, installed in wrong[:SHOWN]
    ]  # fmt: skip
    more = [_("{n} more", n=len(wrong) - SHOWN)] * (len(wrong) > SHOWN)
    what = _("{wrong} of {count} packages are others than the tested ones: {names}",
             wrong=len(wrong), count=count, names=", ".join([*named, *more]))  # fmt: skip
    why = _("Unsloth replaces functions inside transformers, trl and peft: with other versions it may fail")
    is_missing = any(not installed for _one, installed in wrong)
    return Check(NAME, "error" if is_missing else "warning", what, why, f"`{install_command(wrong)}`")


def install_command(wrong: list[tuple[Requirement, str]]) -> str:
    """The command that brings the packages that differ to their versions, and no others."""
    if any(one.name.lower() == "torch" for one, _installed in wrong):
        return set_up_command()  # which build of torch is the set-up's decision
    python = ".venv/bin/python" if (CLONE / ".venv" / "bin" / "python").exists() else "python"
    exact = " ".join(f"'{one.name}{one.specifier}'" for one, _installed in wrong)
    return f"{python} -m pip install --no-deps {exact}"


def differing(requirements: Iterable[Requirement]) -> list[tuple[Requirement, str]]:
    """The requirements that the installed packages do not meet, each with the version that is installed ("": none).

    A local version counts as the public one (PEP 440): torch 2.13.0+cpu is 2.13.0.
    """
    wrong = []
    for one in requirements:
        try:
            installed = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            installed = ""
        if not installed or not one.specifier.contains(installed, prereleases=True):
            wrong.append((one, installed))
    return wrong


def locked(lock: Path) -> list[Requirement]:
    """The requirements of a lock that are meant for this Python and this processor."""
    found = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # an empty line, an option of pip's
        if requirement.marker is None or requirement.marker.evaluate():
            found.append(requirement)
    return found
