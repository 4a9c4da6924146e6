"""What to type for each thing that can be wrong with a run of ours: complete commands, and none that is refused. What
to change in another trainer's training: log_remedies.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fasttune.command import WITHOUT_FILES, OnExisting, command_line, run_arguments, runs_option
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.planning.acceptance import is_accepted
from fasttune.planning.augment import can_augment
from fasttune.planning.parents import (
    OF_THE_CONTINUATION,
    OVERFIT_EPOCHS,
    began_with,
    resume_words,
    typed_value,
    unfinished,
)
from fasttune.recipe.schema import DataRecipe, Recipe
from fasttune.runs import bands, documents, epochs, judgement, store
from fasttune.runs.documents import PlanDocument
from fasttune.runs.holding_out import share_to_hold_out
from fasttune.runs.store import Run

MORE = 1.5  # epochs to add, and the factor for other trainers' epochs
SLOWER, FASTER = 0.25, 2.0  # factors of a learning rate that was too high, and of one on whose plateau nothing moved


@dataclass(frozen=True)
class RunRemedies:
    """The commands for a run of our own; each one is planned before it is printed, so that none is refused when it is
    typed. "" where nothing that can be typed helps.

    `best_epochs` is where its held-out loss was at its best, `earlier` the epoch kept there, if one is.
    """

    run: Run
    plan: PlanDocument
    best_epochs: float | None = None
    earlier: epochs.KeptEpoch | None = None
    datasets: dict[tuple[DataRecipe, int], Dataset] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def more_epochs(self) -> str:
        """Train on; where its last checkpoint can't be continued from, as after a change of its data, a longer training
        from the base."""
        if self.run.status != "finished":
            return self.resume
        longer = f"train.epochs={self.plan.epochs + MORE:.3g}"
        return self.continued("incremental", f"continue.add_epochs={MORE}") or self.retuned(longer)

    @property
    def continue_(self) -> str:
        """Train on, in place of beginning again."""
        return self.more_epochs

    @cached_property
    def resume(self) -> str:
        """Resume a stopped run; where that is refused, as after a change of its data, train it anew."""
        return self.resumed or self.anew("")

    @cached_property
    def resumed(self) -> str:
        """Resume the run; "" where that is refused, and where another run of its series is newer."""
        words = resume_words(self.run)
        is_open = unfinished(self.run.root, self.run.series) == self.run
        return self.typed(words.overrides, **words.flags) if is_open else ""

    @cached_property
    def make_files(self) -> str:
        """Make the files that are missing: by resuming a run that was killed before it was complete, which asks the
        probe questions too, else by `fasttune export`."""
        return self.resumed or export_command(self.run)

    @cached_property
    def fewer_epochs(self) -> str:
        """Train anew up to where the held-out loss was at its best, or half as long; "" where that is the training that
        it had."""
        had, fewer = f"{self.plan.epochs:.3g}", f"{self.best_epochs or max(1.0, self.plan.epochs / 2):.3g}"
        in_one_go = self.plan.strategy in ("fresh", "retune")
        return "" if in_one_go and had == fewer else self.retuned(f"train.epochs={fewer}")

    @cached_property
    def higher_learning_rate(self) -> str:
        """Train anew with a learning rate that moves something."""
        values = self.plan.values
        suits = bands.suiting_learning_rate(
            self.plan.epochs, self.plan.train_samples, values.get("lora.alpha"), values.get("model.base")
        )
        return self.retuned(f"train.learning_rate={higher_rate(self.learning_rate, suits):.2g}")

    @cached_property
    def lower_learning_rate(self) -> str:
        """Train anew with a quarter of the learning rate."""
        return self.retuned(f"train.learning_rate={self.learning_rate * SLOWER:.2g}")

    @cached_property
    def clip_gradients(self) -> str:
        """Train anew with smaller gradients."""
        return self.retuned("train.max_grad_norm=0.3")

    @cached_property
    def one_schedule(self) -> str:
        """Train all epochs anew in one go."""
        return self.retuned(f"train.epochs={self.plan.epochs:.3g}")

    @cached_property
    def hold_out(self) -> str:
        """Train anew with enough held-out samples; "" where there are too few to hold so many out."""
        held_out = 0 if isinstance(self.plan.values.get("data.val"), str) else self.plan.val_samples
        samples = self.plan.train_samples + held_out
        share = share_to_hold_out(samples)
        return self.anew(f"data.val={share}") if share * samples >= judgement.ENOUGH_HELD_OUT else ""

    @cached_property
    def look_at_mask(self) -> str:
        """`fasttune show` of the first sample, by the run's recipe."""
        given = self.run.provenance.is_file()
        files = documents.read_provenance(self.run).data.train if given else ("train.jsonl",)
        return command_line(["show", f"{files[0]}:1", "--recipe", str(self.run.recipe)])

    @cached_property
    def other_numbers(self) -> str:
        """Train anew in float32."""
        return self.anew("model.dtype=float32")

    @cached_property
    def lower_rank(self) -> str:
        """Train anew with half the rank."""
        return self.retuned(f"lora.r={max(4, self.plan.values.get('lora.r', 8) // 2)}")

    @cached_property
    def higher_rank(self) -> str:
        """Train anew with rank 8."""
        return self.retuned("lora.r=8")

    @cached_property
    def larger_base(self) -> str:
        """Train anew on a larger base."""
        return self.anew("model.base=Qwen/Qwen2.5-1.5B-Instruct")

    @cached_property
    def talk(self) -> str:
        """Talk to it; where no file of what it serves is there, make one first."""
        return use_command(self.run)

    @cached_property
    def pick_best(self) -> str:
        """`fasttune pick` of the epoch kept at the lowest held-out loss; "" where there is none, and for a run that is
        not finished."""
        if self.earlier is None or self.run.status != "finished":
            return ""
        return epochs.pick_command(self.run, "--epoch", epochs.epoch_word(self.earlier.epoch))

    @cached_property
    def check(self) -> str:
        """`fasttune check` of the run's recipe: what is missing in its samples."""
        given = [word for override in overrides(self.run, OF_THE_CONTINUATION) for word in ("--set", override)]
        return command_line(["check", str(self.run.recipe), *given])

    @cached_property
    def augment(self) -> str:
        """`fasttune augment`, which makes samples of the recipe's fact sheet; "" where it has none that samples can be
        made of, and where they are among the training samples already."""
        sheet = str(self.plan.values.get("facts.file") or "")
        if not sheet or not can_augment(Path(sheet), self.plan.values.get("data.train") or ()):
            return ""
        named_by_recipe = "facts.file" not in began_with(self.run)
        return command_line(["augment", str(self.run.recipe) if named_by_recipe else sheet])

    @property
    def learning_rate(self) -> float:
        """The learning rate that it was trained with."""
        return float(self.plan.values.get("train.learning_rate", bands.RATE_IN_BAND))

    # How they are made ----------------------------------------------------------------------------------------------

    def retuned(self, override: str) -> str:
        """The run's training from the base with one override, as a continuation of it; a run of its own where that is
        refused, as for a run that was not finished."""
        return self.continued("retune", override) or self.anew(override)

    def continued(self, strategy: str, override: str) -> str:
        """`fasttune run` of the run's recipe that continues from it with one override; "" where that is refused."""
        if self.run.status != "finished":
            return ""
        key = override.partition("=")[0]
        kept = overrides(self.run, (*OF_THE_CONTINUATION, key)) + self.by_epochs(key)
        if store.current(self.run.root, self.run.series) != self.run:
            kept.append(f"continue.parent={self.run.id}")
        given = [*kept, override]
        beside: OnExisting | None = "new" if self.newest_is_open else None  # it would be resumed by the same command
        long = self.epochs_with(override) > OVERFIT_EPOCHS
        return self.typed(given, strategy=strategy, on_existing=beside, allow_overfit=long)

    def anew(self, override: str) -> str:
        """`fasttune run` of the run's recipe from the base, with one override or with none where it is "", beside what
        there is; "" where that is refused."""
        replaced = [override.partition("=")[0]] * bool(override)
        kept = overrides(self.run, ("strategy", "continue.", *replaced)) + self.by_epochs(*replaced)
        strategy = ["strategy=fresh"] * (self.plan.strategy != "fresh")
        given = [*kept, *strategy, *([override] if override else [])]
        return self.typed(given, on_existing="new", allow_overfit=self.epochs_with(override) > OVERFIT_EPOCHS)

    def epochs_with(self, override: str) -> float:
        """The total epochs of a training with an override."""
        key, _sign, value = override.partition("=")
        if key == "train.epochs":
            return float(value)
        return self.plan.epochs + (MORE if key == "continue.add_epochs" else 0.0)

    def by_epochs(self, key: str = "") -> list[str]:
        """What makes an override of train.epochs count where the run's length was train.max_steps."""
        return ["train.max_steps=0"] * bool(key == "train.epochs" and self.plan.values.get("train.max_steps"))

    @property
    def newest_is_open(self) -> bool:
        """Whether the newest run of the series was stopped, or its files are not made yet."""
        return unfinished(self.run.root, self.run.series) is not None

    def typed(
        self, given: Sequence[str], *, strategy: str | None = None, on_existing: OnExisting | None = None,
        allow_overfit: bool = False,
    ) -> str:  # fmt: skip
        """The command line, or "" where `fasttune run` would refuse it."""
        run = self.run
        if not is_accepted(run.recipe, run.root, given, self.read, strategy=strategy, on_existing=on_existing,
                           allow_overfit=allow_overfit):  # fmt: skip
            return ""
        return command_line(run_arguments(run.recipe, run.root, given, strategy=strategy, on_existing=on_existing,
                                          allow_overfit=allow_overfit))  # fmt: skip

    def read(self, recipe: Recipe) -> Dataset:
        """The samples of a recipe; each data set is read once."""
        key = (recipe.data, recipe.train.seed)
        if key not in self.datasets:
            self.datasets[key] = load_dataset(*key)
        return self.datasets[key]


def overrides(run: Run, replaced: tuple[str, ...]) -> list[str]:
    """The overrides that a run began with, as they are typed after --set, without those that are replaced, and without
    those of a sweep's trial, which writes no files."""
    given = began_with(run)
    if all(key in given and not given[key] for key in WITHOUT_FILES):
        given = {key: value for key, value in given.items() if key not in WITHOUT_FILES}
    return [f"{key}={typed_value(value)}" for key, value in given.items() if not key.startswith(replaced)]


def export_command(run: Run) -> str:
    """`fasttune export` of the run."""
    return command_line(["export", run.id, *runs_option(run.root)])


def use_command(run: Run, name: str = "") -> str:
    """What uses the adapter that a finished run serves: chat where a file of it is there, else the export that makes
    one. `name` stands for the run where it is given, as that of a series does for its run in use."""
    from fasttune.export.artifact import gguf_files, is_of_served_adapter

    where = runs_option(run.root)
    if any(is_of_served_adapter(run, path) for path in gguf_files(run)):
        return command_line(["chat", name or run.id, *where])
    types = [] if documents.read_plan(run).values.get("export.gguf") else ["--gguf", "q8_0"]
    return command_line(["export", name or run.id, *types, *where])


def higher_rate(rate: float, suits: float) -> float:
    """The learning rate to try after one that moved nothing: the one that suits, or a higher one where it had that."""
    return suits if rate < suits else rate * FASTER
