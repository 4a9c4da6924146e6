"""Held-out loss by training time: a recipe as fasttune trains it, then with the settings of stock Unsloth's notebooks.

    python benchmarks/notebook.py recipes/nell.toml --base FOLDER --out docs/evidence/notebook.jsonl
    python benchmarks/notebook.py --table docs/evidence/notebook.jsonl

The notebooks' settings: r 16, alpha 16, learning rate 2e-4 falling linearly after 5 warmup steps, weight decay 0.01,
2 samples x 4 accumulated, 60 steps (unslothai/notebooks, the Qwen2.5 ones), by Unsloth's model and TRL's SFTTrainer.
Both learn the same tokens of the same samples from the same base in the same type, and the same samples are held out.
Seconds are those of the steps alone: start-up and evaluations are not counted for either. `--seconds` ends stock's
training after so many; without it, it takes its 60 steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
STEPS, MICRO_BATCH, WARMUP_STEPS = 60, 2, 5
NOTEBOOK = ("lora.r=16", "lora.alpha=16", "train.learning_rate=2e-4", "train.batch_size=8", "train.weight_decay=0.01")
QUIET = ("export.gguf=[]", "probe.questions=[]", "train.report_to=[]", "train.keep_epochs=false")
Row = dict[str, list[int]]  # input_ids and labels, as TRL takes them


@dataclass(frozen=True)
class Point:
    """Held-out loss in nats a token after `step` steps, which took `seconds`."""

    step: int
    seconds: float
    held_out: float


def main() -> None:
    """Train both, one after the other, and write a line of JSON for each; or show the table of such lines."""
    arguments = parsed()
    if arguments.table:
        lines = Path(arguments.table).read_text(encoding="utf-8").splitlines()
        print("\n".join(table(json.loads(line) for line in lines)))
        return
    for engine, points in trained(arguments):
        line = {"recipe": arguments.recipe, "overrides": arguments.set, "engine": engine}
        written = json.dumps(line | {"points": [asdict(point) for point in points]}, ensure_ascii=False)
        print(written, flush=True)
        if arguments.out:
            with Path(arguments.out).open("a", encoding="utf-8") as file:
                file.write(written + "\n")


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="a recipe with held-out samples")
    parser.add_argument("--base", default="builtin:tiny", help="the base of both: a folder or a hub's name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for both")
    parser.add_argument("--steps", type=int, default=STEPS, help="stock's steps")
    parser.add_argument("--every", type=int, default=6, help="stock's held-out loss after every so many steps")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end stock's training after so many")
    parser.add_argument("--engine", choices=["fasttune", "stock"], help="only one of the two")
    parser.add_argument("--out", help="a file that the lines are added to")
    parser.add_argument("--table", help="show the table of such a file")
    arguments = parser.parse_args()
    if not arguments.table and not arguments.recipe:
        parser.error("a recipe or --table FILE is needed")
    return arguments


def trained(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Point]]]:
    """The engines with their held-out losses, each as its training ends."""
    overrides = (f"model.base={arguments.base}", *arguments.set)
    if arguments.engine != "stock":
        yield "fasttune", by_fasttune(arguments.recipe, overrides)
    if arguments.engine != "fasttune":
        yield "stock", by_stock(arguments, overrides)


def by_fasttune(recipe: str, overrides: Sequence[str]) -> list[Point]:
    """The held-out losses of `fasttune run RECIPE`, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="fasttune-notebook-") as root:
        settings = [part for override in (*overrides, *QUIET) for part in ("--set", override)]
        command = [sys.executable, "-m", "fasttune", "run", recipe, "--runs", root, *settings]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        (history,) = Path(root).glob("*/*/history.jsonl")
        return points_of(json.loads(line) for line in history.read_text(encoding="utf-8").splitlines())


def points_of(history: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The held-out losses of a run's history, with the seconds that its steps had taken by then."""
    seconds, points = 0.0, []
    for line in history:
        seconds += line.get("step_seconds", 0.0)
        if "eval_loss" in line:
            points.append(Point(line["step"], round(seconds, 1), round(line["eval_loss"], 4)))
    return points


def by_stock(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Point]:
    """The held-out losses of stock Unsloth with the notebooks' settings, in this process."""
    import datasets

    from fasttune.bench import engines, workload
    from fasttune.bench.jobs import Job
    from fasttune.data.dataset import load_dataset
    from fasttune.data.tokenize import tokenize_samples
    from fasttune.training import hub
    from fasttune.training import model as models

    settings = (*overrides, *NOTEBOOK)
    job = Job("stock", arguments.recipe, settings, arguments.base, arguments.steps, time.monotonic(), 0, MICRO_BATCH)
    recipe, dataset = workload.read_recipe(job)
    job = replace(job, base=str(hub.locate(recipe.model)))
    tokenizer = models.load_tokenizer(Path(job.base))
    samples = (dataset.trained, load_dataset(recipe.data, recipe.train.seed).held_out)
    length = recipe.model.max_seq_length
    examples, held_out = (tokenize_samples(some, tokenizer, recipe.data, length).examples for some in samples)
    watch = held_out_watch([engines.labelled(example) for example in held_out], arguments.every, arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="fasttune-notebook-") as output:
        stock = engines.trainer_settings(job, recipe, tokenizer, output)
        stock.args.lr_scheduler_type, stock.args.warmup_steps = "linear", WARMUP_STEPS
        stock.trainer(
            model=engines.stock_model(job, recipe),
            args=stock.args,
            train_dataset=datasets.Dataset.from_list([engines.labelled(example) for example in examples]),
            processing_class=tokenizer,
            callbacks=[watch],
        ).train()
    return list(watch.points)


def held_out_watch(rows: Sequence[Row], every: int, limit: float) -> Any:
    """A callback with `points`, the held-out losses after every `every` steps; ends the training after `limit` seconds
    of steps."""
    from transformers import TrainerCallback

    class HeldOut(TrainerCallback):
        def __init__(self) -> None:
            self.points: list[Point] = []
            self.seconds = self.began = 0.0

        def on_step_begin(self, *_arguments: Any, **_more: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, _args: Any, state: Any, control: Any, model: Any = None, **_more: Any) -> None:
            self.seconds += time.monotonic() - self.began
            control.should_training_stop = control.should_training_stop or self.seconds >= limit
            if state.global_step % every == 0 or control.should_training_stop:
                loss = held_out_loss(model, rows)
                self.points.append(Point(state.global_step, round(self.seconds, 1), round(loss, 4)))
                print(self.points[-1], file=sys.stderr, flush=True)

    return HeldOut()


def held_out_loss(model: Any, rows: Sequence[Row]) -> float:
    """The mean loss in nats over the supervised tokens of all rows, each computed alone."""
    import torch

    loss, tokens = 0.0, 0
    model.eval()
    for row in rows:
        inputs, labels = (torch.tensor([row[name]], device=model.device) for name in ("input_ids", "labels"))
        supervised = sum(label != -100 for label in row["labels"])
        with torch.no_grad():
            loss += float(model(input_ids=inputs, labels=labels).loss) * supervised
        tokens += supervised
    model.train()
    return loss / tokens


def table(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rows of a Markdown table, one a training: what it took, its held-out losses, and the lowest of them."""
    head = "| recipe | engine | steps | seconds | held-out loss after seconds | lowest |"
    rows = [head, "|---|---|---|---|---|---|"]
    for line in lines:
        points = [Point(**point) for point in line["points"]]
        after = ", ".join(f"{point.seconds:.0f}: {point.held_out:.3f}" for point in points)
        last, lowest = points[-1], min(point.held_out for point in points)
        cells = (Path(line["recipe"]).stem, line["engine"], last.step, f"{last.seconds:.0f}", after, f"{lowest:.3f}")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main()
