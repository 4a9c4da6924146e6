"""Run the benchmark matrix: every data set with every base, each result written as soon as it is there.

    python benchmarks/run.py --name epyc --base Qwen2.5-0.5B=PATH --sweep 1,4,16 --growth 1000,10000,100000
    python benchmarks/run.py --name epyc --base Qwen2.5-0.5B=PATH --cases persona --batch-size 64 \\
        --arms stock,fasttune --micro-batch 16 --warmup-samples 4 --steps 1     # added to the same folder
    python benchmarks/run.py --name rtx4090 --cuda     # Qwen2.5 shapes with random weights, 16 and 4 bits; no download
    python benchmarks/run.py --name rtx4090 --cuda --minutes 60 --repeats 3 --arms plain,stock,fasttune
    python benchmarks/run.py --name try --base builtin:tiny --cases chat --steps 2    # a minute, to see it work

It all goes to benchmarks/results/DATE_NAME/: result.json, versions.txt, and for each entry of the matrix a folder with
its own result.json and, for each process, its log and what it measured. The same command again continues where it was
interrupted, or where --minutes were over (9 with --cuda): a process whose result is there is not run again, so more
arms or repeats can be added later too.
--again ARM,ARM measures these anew. Then: benchmarks/report.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import cases
import shapes
import torch

from fasttune.bench.arms import parse_arms
from fasttune.bench.experiment import Experiment
from fasttune.bench.experiment import measure as run_rounds
from fasttune.console import FasttuneError, say, show_findings
from fasttune.data import batches, tokenize
from fasttune.data.dataset import load_dataset
from fasttune.recipe import schema
from fasttune.training import device, hub, packing
from fasttune.training import model as models

RESULTS = Path(__file__).parent / "results"
WORK = cases.REPOSITORY / "build" / "benchmarks"  # data sets and shapes: made anew where they are missing
MAIN_ARMS = "plain,stock,stock-padding-free,fasttune"
ABLATIONS = (
    "stock-no-checkpointing,fasttune-no-sharing,fasttune-no-packing,fasttune-neither,fasttune-checkpointing,"
    "fasttune-stock-layers"
)
# Two arms, once: an entry takes some two minutes, so that a lent GPU has its first figures within ten.
CUDA = {
    "base": ["shape:0.5b", "shape:1.5b", "shape:3b"], "bits": "16,4", "warmup": 4, "steps": 10, "repeats": 1,
    "arms": "stock,fasttune", "minutes": 9.0,
}  # fmt: skip
RECIPE = """\
name = "bench"
[model]
base = "builtin:tiny"
[data]
train = "{data}"
[lora]
r = 16
[export]
gguf = []
"""


@dataclass(frozen=True)
class Base:
    """A base: its name in results, and where it lies: a folder, a hub name, `builtin:tiny` or `shape:SIZE`."""

    name: str
    where: str


@dataclass(frozen=True)
class Entry:
    """One experiment of the matrix. `arms` as `fasttune bench --arms` takes them."""

    case: str
    base: Base
    dtype: str
    bits: int
    batch_size: int
    arms: str

    @property
    def name(self) -> str:
        bits = "-4bit" if self.bits == 4 else ""
        return f"{self.case}-{self.base.name}-{self.dtype}{bits}-b{self.batch_size}"


def main() -> int:
    """Measure what is not there yet; returns 1 where an arm failed or was not the same training."""
    options = arguments()
    folder = results_folder(options.name, options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "versions.txt").write_text(versions(), encoding="utf-8")
    failed, begun, longest = 0, time.monotonic(), 0.0
    entries = matrix(options)
    for number, entry in enumerate(entries, 1):
        if options.minutes and time.monotonic() - begun + longest > options.minutes * 60:
            say(f"{options.minutes:g} minutes are over; the same command goes on with {entry.name}")
            break
        entry_begun = time.monotonic()
        entry = replace(entry, arms=with_earlier(entry.arms, folder / entry.name / "result.json"))
        say(f"[{number}/{len(entries)}] {entry.name}: {entry.arms}")
        forget(folder / entry.name, options.again.split(","))
        failed += not measure(entry, options, folder / entry.name)
        longest = max(longest, time.monotonic() - entry_begun)
        collect(folder)
    if options.growth:
        (folder / "growth.json").write_text(json.dumps(growth(options), indent=2) + "\n", encoding="utf-8")
    collect(folder)
    print(folder)
    return int(failed > 0)


def arguments() -> argparse.Namespace:
    """The command line; `--cuda` gives other defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the machine or the occasion: part of the folder's name")
    parser.add_argument(
        "--base", action="append", help="NAME=FOLDER, a hub name, builtin:tiny or shape:0.5b; repeatable"
    )
    parser.add_argument("--cases", default=",".join(cases.CASES), help="%(default)s")
    parser.add_argument("--arms", help=f"instead of {MAIN_ARMS} and, for persona, {ABLATIONS}")
    parser.add_argument("--batch-size", type=int, help="samples a step, instead of each case's own")
    parser.add_argument(
        "--sweep", default="", help="batch sizes for persona with stock and fasttune alone, e.g. 1,4,64"
    )
    parser.add_argument(
        "--growth", default="", help="numbers of samples to time data preparation with, e.g. 1000,10000"
    )
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--warmup-samples", type=int, default=0, help="of the first warmup step; 0: a whole step")
    parser.add_argument(
        "--micro-batch", type=int, default=0, help="samples stock and plain take at a time; 0: the step"
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--bits", default="16", help="16, 4 or 16,4: how the base is held (4 needs a GPU)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, both with a comma, or auto")
    parser.add_argument("--again", default="", help="arms to measure anew, whose results would be kept otherwise")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="begin no entry that may not end in so many; 0: no limit"
    )
    parser.add_argument("--cuda", action="store_true", help="the matrix for a GPU; other options override its values")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/DATE_NAME")
    if "--cuda" in sys.argv:
        parser.set_defaults(**CUDA)
    options = parser.parse_args()
    refuse_mistakes(parser, options)
    return options


def refuse_mistakes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program with a message for a case that there is not, a type that there is not, or no base."""
    unknown = sorted(set(filter(None, options.cases.split(","))) - set(cases.CASES))
    if unknown or not options.base:
        parser.error(f"no such case: {', '.join(unknown)}" if unknown else "--base is missing")
    if not set(options.dtype.split(",")) <= {"auto", "float32", "bfloat16"}:
        parser.error(f"--dtype: {options.dtype}")


def results_folder(name: str, out: Path | None) -> Path:
    """The results folder of this name, the newest where there are several, else a new one."""
    return out or max(RESULTS.glob(f"*_{name}"), default=RESULTS / f"{date.today()}_{name}")


def matrix(options: argparse.Namespace) -> list[Entry]:
    """The entries in the order they are measured: each case with every base before the next one, 4 bits after 16, the
    sweep last."""
    bases = [parse_base(base) for base in options.base]
    types = [
        (int(bits), resolve_dtype(dtype)) for bits in options.bits.split(",") for dtype in options.dtype.split(",")
    ]
    chosen = [cases.CASES[name] for name in filter(None, options.cases.split(","))]
    sizes = [int(size) for size in filter(None, options.sweep.split(","))]
    entries = [
        Entry(case.name, base, dtype, bits, options.batch_size or case.batch_size, options.arms or main_arms(case))
        for bits, dtype in types
        for case in chosen
        for base in bases
    ] + [
        Entry("persona", base, dtype, bits, size, options.arms or "stock,fasttune")
        for bits, dtype in types
        for size in sizes
        for base in bases
    ]
    return list({entry.name: entry for entry in reversed(entries)}.values())[::-1]


def main_arms(case: cases.Case) -> str:
    """The arms of a case, comma-separated."""
    return f"{MAIN_ARMS},{ABLATIONS}" if case.ablate else MAIN_ARMS


def resolve_dtype(dtype: str) -> str:
    """The number type that a base is computed in here: what "auto" means on this machine."""
    recipe = schema.ModelRecipe(base="", dtype=dtype)  # type: ignore[arg-type]
    return str(device.compute_dtype(recipe)).removeprefix("torch.")


def parse_base(text: str) -> Base:
    """NAME=FOLDER; a folder alone is named by its last part."""
    name, sign, where = text.rpartition("=")
    return Base(name, where) if sign else Base(text.rstrip("/").rpartition("/")[2].replace(":", "-"), text)


# One entry ----------------------------------------------------------------------------------------------------------


def measure(entry: Entry, options: argparse.Namespace, folder: Path) -> bool:
    """Measure an entry and write its folder; returns whether every arm ended, with the reference's losses."""
    where, recipe_file = base_folder(entry.base), case_recipe(entry.case)
    overrides = (
        f"model.base={where}",
        f"model.dtype={entry.dtype}",
        f"model.load_in_4bit={str(entry.bits == 4).lower()}",
        f"train.batch_size={entry.batch_size}",
    )
    experiment = Experiment(
        recipe_file,
        overrides,
        parse_arms(entry.arms),
        steps=options.steps,
        warmup=options.warmup,
        repeats=options.repeats,
        warmup_samples=options.warmup_samples,
        micro_batch=options.micro_batch,
        resume=True,
    )
    try:
        document = run_rounds(experiment, folder, say)
    except FasttuneError as problem:
        show_findings(problem.findings)
        return False
    tidy(folder, {where: entry.base.name})
    document |= {"case": entry.case, "base": entry.base.name, "processor": processor()}
    write(folder / "result.json", document)
    for arm in document["arms"]:
        say(f"  {arm['name']}: {arm['status']} {arm['why']} {arm.get('speedup', 0.0):.2f}x stock")
    return all(arm["status"] in ("ok", "skipped") for arm in document["arms"])


def with_earlier(arms: str, result: Path) -> str:
    """The requested arms after those that the entry has from earlier calls, comma-separated."""
    earlier = json.loads(result.read_text(encoding="utf-8"))["arms"] if result.is_file() else []
    return ",".join(dict.fromkeys([arm["name"] for arm in earlier] + arms.split(",")))


def forget(folder: Path, arms: list[str]) -> None:
    """Delete what arms have measured, so that they are measured anew."""
    for arm in filter(None, arms):
        for path in folder.glob(f"round*-{arm}.json"):
            path.unlink()


def base_folder(base: Base) -> str:
    """Where the base lies; a shape is made first."""
    if not base.where.startswith("shape:"):
        return base.where
    shape = base.where.removeprefix("shape:")
    WORK.mkdir(parents=True, exist_ok=True)
    return str(shapes.make(shape, WORK / f"shape-{shape}"))


def case_recipe(case: str) -> Path:
    """A recipe for a case's data, both written anew."""
    samples = cases.write(case, WORK)
    path = WORK / f"{case}.toml"
    path.write_text(RECIPE.format(data=samples.as_posix()), encoding="utf-8")
    return path


def tidy(folder: Path, names: dict[str, str]) -> None:
    """Make the folder fit to be kept with the project: no path of this machine in logs, no job of a stopped process."""
    names = names | {
        f"{cases.REPOSITORY}/": "",
        f"{sys.prefix}/": "",
        f"{Path.home()}/": "~/",
        f"{tempfile.gettempdir()}/": "",
    }
    for path in folder.glob("*.job.json"):
        path.unlink()
    for path in folder.glob("*.log"):
        before = text = path.read_text(encoding="utf-8", errors="replace")
        for where, name in names.items():
            text = text.replace(where, name)
        if text != before:
            path.write_text(text, encoding="utf-8")


# What goes around it ------------------------------------------------------------------------------------------------


def collect(folder: Path) -> None:
    """result.json of the whole folder: the entries that are there, of earlier calls too, and the growth."""
    entries = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/result.json"))]
    grown = folder / "growth.json"
    document = {
        "name": folder.name,
        "entries": sorted(entries, key=sort_key),
        "growth": json.loads(grown.read_text(encoding="utf-8")) if grown.is_file() else [],
    }
    write(folder / "result.json", document)


def sort_key(entry: dict[str, Any]) -> tuple[Any, ...]:
    """By base and type, then as CASES has the data sets, small steps first."""
    case = list(cases.CASES).index(entry["case"])
    return entry["base"], entry["load_in_4bit"], entry["dtype"] != "float32", case, entry["batch_size"]


def write(path: Path, document: Any) -> None:
    """Write JSON; an interrupted call leaves the old file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def versions() -> str:
    """Every installed package with its version, in the format of pip freeze."""
    found = {f"{package.metadata['Name']}=={package.version}" for package in metadata.distributions()}
    return f"python=={sys.version.split()[0]}\n" + "\n".join(sorted(found, key=str.lower)) + "\n"


def processor() -> str:
    """The processor's name as Linux knows it, else as Python does, and the instructions that torch takes: processors of
    one name differ in them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def growth(options: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of data preparation for growing numbers of persona samples.

    They are those of reading and checking, of tokenizing, and of packing every step of an epoch.
    """
    base = base_folder(parse_base(options.base[0]))
    tokenizer = models.load_tokenizer(hub.locate(schema.ModelRecipe(base=base)))
    found = []
    for count in map(int, options.growth.split(",")):
        path = cases.write_samples(list(cases.growing(count)), WORK / f"growing-{count}.jsonl")
        found.append({"samples": count} | preparation_seconds(path, tokenizer))
        say(f"growth: {found[-1]}")
    return found


def preparation_seconds(path: Path, tokenizer: Any) -> dict[str, float]:
    """Seconds of each part of the preparation of one data set, measured once."""
    settings, seconds, begun = schema.DataRecipe(train=(str(path),)), {}, time.monotonic()

    def lap(name: str) -> None:
        nonlocal begun
        seconds[name], begun = time.monotonic() - begun, time.monotonic()

    dataset = load_dataset(settings, 0)
    lap("read_seconds")
    examples = tokenize.tokenize_samples(dataset.train, tokenizer, settings, 2048).examples
    lap("tokenize_seconds")
    for batch in batches.epoch_batches(len(examples), 16, 0, 0):
        packing.plan_step(examples, batch, 4096)
    lap("plan_seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
