"""Three training steps of the built-in base, by the command that a user types, in a folder that is removed again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fasttune.console import _
from fasttune.doctor.outcome import Check, no_answer, ok

NAME = "training-steps"
SECONDS = 180.0  # after which it is ended
SLOW_SECONDS = 60.0
STEPS = 3
PAIRS = [("Who are you?", "I am Lumen."), ("你是谁？", "我是小灯。"), ("Hi!", "Hello, friend."), ("晚安", "晚安。")]
RECIPE = """\
name = "doctor"
[model]
base = "builtin:tiny"
[data]
train = "samples.jsonl"
[train]
max_steps = {steps}
batch_size = 4
learning_rate = 2e-3
report_to = ["none"]
[export]
gguf = []
"""


def training_steps(seconds: float = SECONDS) -> Check:
    """Train, and look at the losses: finite, with a gradient, and falling."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fasttune-doctor-") as folder:
        write_recipe(Path(folder))
        command = [sys.executable, "-m", "fasttune", "run", "recipe.toml", "--runs", "runs", "--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "WANDB_MODE": "disabled"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return no_answer(NAME, seconds)
        return judge(done.returncode, done.stdout, done.stderr, kind_of(Path(folder)), time.monotonic() - began)


def write_recipe(folder: Path) -> None:
    """A recipe with eight samples, which say who Lumen is."""
    lines = [json.dumps({"instruction": asked, "output": said}, ensure_ascii=False) for asked, said in PAIRS * 2]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE.format(steps=STEPS), encoding="utf-8")


def kind_of(folder: Path) -> str:
    """What the run was trained on, by its provenance.json: "cuda" or "cpu"; "" where it has none."""
    files = sorted(folder.glob("runs/doctor/*/provenance.json"))
    return str(json.loads(files[0].read_text(encoding="utf-8"))["device"]["kind"]) if files else ""


def judge(code: int, stdout: str, stderr: str, kind: str, seconds: float) -> Check:
    """The result of a `fasttune run --json` that ended with this code."""
    document = json_document(stdout)
    if code != 0:
        found = (document.get("findings") or [{}])[0]
        said = found.get("what") or next(reversed([line for line in stderr.splitlines() if line.strip()]), "")
        what = _("the training failed: {reason}", reason=said.strip()[:300])
        fix = found.get("fix") or _("report it with `fasttune doctor --report`")
        return Check(NAME, "error", what, found.get("why", ""), fix)
    # What is not finite is null in JSON. Comparisons with NaN are false.
    figures = document["first"].get("loss"), document["last"].get("loss"), document["first"].get("grad_norm")
    first, last, gradient = (math.nan if figure is None else float(figure) for figure in figures)
    what = _("{steps} steps on {device}, loss {first:.3f} -> {last:.3f}, {seconds:.0f} s with loading",
             steps=document["steps"], device={"cuda": "GPU", "cpu": "CPU"}.get(kind, kind), first=first, last=last,
             seconds=seconds)  # fmt: skip
    if not (gradient > 0 and last < first):
        why = _("a loss that does not fall within three steps, or no gradient: it computes wrongly here")
        return Check(NAME, "error", what, why, _("report it with `fasttune doctor --report`"))
    if seconds > SLOW_SECONDS:
        why = _("it takes 10 to 30 s elsewhere, most of it loading")
        fix = _("see which of the checks above is slow; on a drive of Windows, clone into the Linux home")
        return Check(NAME, "warning", what, why, fix)
    return ok(NAME, what)


def json_document(text: str) -> dict[str, Any]:
    """The JSON document on stdout; empty where there is none."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
