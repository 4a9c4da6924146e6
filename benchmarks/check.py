"""How long `fasttune check` takes for many samples: `.venv/bin/python benchmarks/check.py [SAMPLES]` (100,000).

The file is made up from pieces of data/linzhi in random order, one sample in a hundred nearly the same as another one;
it lies in a temporary folder. Prints the seconds of the whole command, of the processor and by the clock.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINZHI = Path(__file__).parent.parent / "data" / "linzhi" / "train.jsonl"


def make(path: Path, samples: int) -> None:
    """Write a data file of so many samples."""
    records = [json.loads(line)["messages"] for line in LINZHI.read_text(encoding="utf-8").splitlines()]
    turns = [message["content"] for record in records for message in record[1:]]
    pieces = [piece for turn in turns for piece in re.findall(r"[^，。？]+[，。？]", turn)]
    rng = random.Random(0)
    before: list[tuple[str, str]] = []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(samples):
            question, answer = "".join(rng.sample(pieces, 2)), "".join(rng.sample(pieces, 5))[:-1] + "。"
            if number % 100 == 99:
                question, answer = before[number // 2][0], before[number // 2][1][:-3] + "了。"
            before.append((question, answer))
            said = [records[0][0], {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": said}, ensure_ascii=False) + "\n")


def main() -> None:
    """Make the file, check it in a process of its own, print how long that took and what was found."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.jsonl"
        make(path, samples)
        start = time.perf_counter()
        command = [sys.executable, "-m", "fasttune", "check", str(path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    findings = json.loads(done.stdout)["findings"]
    near = sum(finding["code"] == "near-duplicate-sample" for finding in findings)
    print(f"{samples:,} samples: {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of the processor, "
          f"{used.ru_maxrss / 2**20:.1f} GiB; {len(findings):,} findings, {near:,} near-duplicates")  # fmt: skip


if __name__ == "__main__":
    main()
