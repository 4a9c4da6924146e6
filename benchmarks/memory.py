"""The memory that `fasttune plan` foretells against the peak that the same training has, each in a process of its own.

    python benchmarks/memory.py                                  # builtin:tiny at two shapes
    python benchmarks/memory.py --base Qwen2.5-0.5B=FOLDER --out FILE.json    # and a real base; on a GPU the same

A training is three steps of `fasttune run`, without export and probe questions. Its peak is the last `memory_gib` of
its history: resident memory on a CPU, what torch has reserved on a GPU, where CUDA's own is left out of the estimate.
Ends with 1 where one is further off than LIMIT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
GIB = 2**30
LIMIT = 0.15
STEPS = 3
QUIET = ("export.gguf=[]", "probe.questions=[]", "data.val=", 'train.report_to=["none"]', f"train.max_steps={STEPS}")


@dataclass(frozen=True)
class Case:
    """A training to foretell and to measure: a recipe of this repository with overrides."""

    name: str
    recipe: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What was foretold and what was measured, in GiB, and `off` = foretold / measured - 1."""

    case: str
    device: str
    longest_row: int
    checkpointing: bool
    foretold: float
    measured: float
    off: float
    parts: dict[str, float]


def cases(base: str) -> list[Case]:
    """The two shapes of builtin:tiny, and short rows of a real base where NAME=FOLDER is given."""
    tiny = "model.base=builtin:tiny"
    found = [
        Case("tiny, short rows", "recipes/quickstart.toml", ("train.batch_size=16",)),
        Case("tiny, long rows", "recipes/linzhi.toml", (tiny, "train.batch_size=64", "model.max_seq_length=4096")),
    ]
    if base:
        name, _sign, folder = base.partition("=")
        real = (f"model.base={Path(folder).resolve()}", "train.batch_size=4", "lora.r=8")
        found.append(Case(f"{name}, short rows", "recipes/linzhi.toml", real))
    return found


def fasttune(*arguments: str) -> dict[str, Any]:
    """The JSON document of a fasttune command, in a process of its own."""
    command = [sys.executable, "-m", "fasttune", *arguments, "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measure(case: Case) -> Outcome:
    """Foretell a case, train it, and compare."""
    values = [word for override in (*QUIET, *case.overrides) for word in ("--set", override)]
    with tempfile.TemporaryDirectory() as runs:
        foretold = fasttune("plan", case.recipe, "--runs", runs, *values)["estimate"]
        peak = fasttune("run", case.recipe, "--runs", runs, *values)["last"]["memory_gib"]
    parts = {name: size / GIB for name, size in foretold["memory"].items()}
    total = parts.pop("total")
    if foretold["device"] == "cuda":
        total -= parts["runtime"]
    return Outcome(
        case.name, foretold["device"], foretold["longest"], foretold["checkpointing"], round(total, 3), round(peak, 3),
        round(total / peak - 1, 3), {name: round(size, 3) for name, size in parts.items()},
    )  # fmt: skip


def main() -> int:
    """Measure all cases, print and keep them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", metavar="NAME=FOLDER", help="a real base")
    parser.add_argument("--out", type=Path, help="where to keep the outcomes as JSON")
    options = parser.parse_args()
    outcomes = []
    for case in cases(options.base):
        outcome = measure(case)
        outcomes.append(outcome)
        print(f"{outcome.case:24} row {outcome.longest_row:6,}  foretold {outcome.foretold:6.2f}  "
              f"measured {outcome.measured:6.2f} GiB  off {outcome.off:+.1%}", flush=True)  # fmt: skip
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        document = {"limit": LIMIT, "steps": STEPS, "outcomes": [asdict(outcome) for outcome in outcomes]}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any(abs(outcome.off) > LIMIT for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
