"""How soon the board shows its first page, and how much memory it takes: 100 runs, one of them with a history of
100,000 lines, measured at a `fasttune board` in a process of its own.

    python benchmarks/board.py [--runs 100] [--lines 100000]

Prints one JSON document: seconds to the page of all runs and to the page of the long run, both the first time they are
asked for, and the resident memory of the board in MB at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from run_folders import write_run  # noqa: E402

from fasttune.runs.store import Run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--lines", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long = write_runs(Path(folder), given.runs, given.lines)
        print(json.dumps(measured(Path(folder), long), indent=2))


def write_runs(root: Path, runs: int, lines: int) -> str:
    """Many runs in series of ten, each of 300 steps; the id of one whose history has so many lines."""
    for number in range(runs - 1):
        write_history(write_run(root, series=f"series{number // 10}"), 300)
    run = write_run(root, series="long")
    write_history(run, lines)
    return run.id


def write_history(run: Run, lines: int) -> None:
    """A history as training leaves it."""
    with open(run.history, "w", encoding="utf-8") as file:
        for step in range(1, lines + 1):
            line = {"step": step, "loss": 2 / step, "epoch": step / 1000, "grad_norm": 1.0, "learning_rate": 2e-4,
                    "mean_token_accuracy": 0.5, "tokens_per_second": 1234.5, "supervised_tokens_per_second": 456.7,
                    "samples_per_second": 3.2, "step_seconds": 0.51, "computed_tokens": 12345, "num_tokens": step * 99,
                    "memory_gib": 3.21}  # fmt: skip
            file.write(json.dumps(line) + "\n")


def measured(root: Path, long: str) -> dict[str, float]:
    """The figures of a board that is started now."""
    command = [sys.executable, "-m", "fasttune", "board", "--port", "0", "--runs", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as board:
        assert board.stdout is not None
        address = httpx.URL(board.stdout.readline().strip())
        found = {}
        with httpx.Client(trust_env=False, verify=False, timeout=60) as client:
            client.get(address.copy_with(path="/static/board.css"))  # the connection, and what every page loads once
            for name, path in {"all runs": "/", "the long run": f"/runs/{long}"}.items():
                began, computed = time.monotonic(), cpu_seconds(board.pid)
                assert client.get(address.copy_with(path=path)).status_code == 200
                found[f"{name}: first page, s"] = round(time.monotonic() - began, 3)
                found[f"{name}: of that computed by the board, s"] = round(cpu_seconds(board.pid) - computed, 3)
            found["the long run: its figures, s"] = seconds_until_read(client, address.copy_with(path=f"/runs/{long}"))
            for _again in range(20):
                client.get(address)
        status = Path(f"/proc/{board.pid}/status").read_text(encoding="ascii")
        board.send_signal(signal.SIGINT)
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    return {**found, "board: resident memory at its peak, MB": round(int(peak[1]) / 1024, 1)}


def cpu_seconds(process: int) -> float:
    """What a process has computed: on a machine with other work the clock says more about that."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_until_read(client: httpx.Client, page: httpx.URL) -> float:
    """How long it takes until a child process has read a long history for the figures above its curves."""
    began = time.monotonic()
    while "is still being read" in client.get(page).text:
        time.sleep(0.5)
    return round(time.monotonic() - began, 1)


if __name__ == "__main__":
    main()
