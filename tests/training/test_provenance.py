"""Where a run comes from is written down, and a changed base or package shows."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

from conftest import Quickstart

from fasttune.training import hub, provenance


def test_a_run_says_where_it_comes_from(quickstart: Quickstart) -> None:
    document = json.loads((quickstart.folder / "provenance.json").read_text(encoding="utf-8"))
    assert document["packages"]["unsloth"] == metadata.version("unsloth")
    assert document["base"]["name"] == "builtin:tiny"
    assert document["base"]["fingerprint"] == provenance.fingerprint(hub.TINY)
    assert document["data"]["fingerprint"]
    assert document["device"]["kind"] in ("cpu", "cuda")
    assert document["system"] == json.loads((quickstart.folder / "plan.json").read_text())["system"]


def test_the_fingerprint_changes_with_the_weights(tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(hub.TINY, copy)
    assert provenance.fingerprint(copy) == provenance.fingerprint(hub.TINY)
    with open(copy / "model.safetensors", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x01\x02\x03")
    assert provenance.fingerprint(copy) != provenance.fingerprint(hub.TINY)
