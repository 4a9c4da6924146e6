"""What `python -m pip install` does for the set-up's tests, without pip: it unpacks wheels of torch from PIP_FIND_LINKS.

tests/test_setup.py copies this file into a virtual environment as pip.py. Like pip it takes the highest version that
satisfies `==`, for which a build such as 2.13.0+cpu satisfies ==2.13.0, and leaves alone what satisfies it already.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path


def satisfies(version: str, pin: str) -> bool:
    """Whether a version satisfies `==pin`; a local version (after `+`) counts only where the pin names one."""
    return version == pin or ("+" not in pin and version.split("+")[0] == pin)


def install(requirement: str, *, again: bool) -> int:
    """Install `NAME==VERSION`; returns pip's exit code."""
    name, _sign, pin = requirement.partition("==")
    site_packages = Path(__file__).parent
    present = list(site_packages.glob(f"{name}-*.dist-info"))
    if not again and any(satisfies(path.name.removesuffix(".dist-info").partition("-")[2], pin) for path in present):
        print(f"Requirement already satisfied: {requirement}")
        return 0
    wheels = {path.name.split("-")[1]: path for path in Path(os.environ["PIP_FIND_LINKS"]).glob(f"{name}-*.whl")}
    versions = sorted(version for version in wheels if satisfies(version, pin))
    if not versions:
        print(f"ERROR: No matching distribution found for {requirement}")
        return 1
    for path in [*present, site_packages / name]:
        shutil.rmtree(path, ignore_errors=True)
    with zipfile.ZipFile(wheels[versions[-1]]) as wheel:
        wheel.extractall(site_packages)
    return 0


if __name__ == "__main__":
    sys.exit(install(sys.argv[-1], again="--force-reinstall" in sys.argv))
