"""What a recipe's run will do: where it starts from, what it inherits, how many steps it takes. Decides, starts
nothing.

    strategy      starts from                          steps
    fresh         the base                             epochs of the recipe
    incremental   all state of the parent's last       the parent's + add_epochs
                  checkpoint (or the base, with the
                  same total)
    retune        the base (or the parent's adapter)   epochs
    augment       as incremental                       a total chosen from the size of the data
    custom        checkpoint, adapter or base          epochs, or the parent's + add_epochs

A continuation inherits every setting of its parent that its recipe leaves unsaid. Whatever the strategy: where the
newest run of the series was stopped before its end, running the recipe again resumes it.

The schedule across a seam is the closed form over the new total: what the learning rate would be at this step had the
total been known from the start. It needs no state, so no step runs at a stale rate; where it jumps, the jump is
printed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fasttune import packing, runs
from fasttune.console import Finding, UsageError, _, usage_error
from fasttune.data import Dataset
from fasttune.recipe import Recipe, settings, with_values
from fasttune.runs import Run

StartKind = Literal["base", "adapter", "checkpoint"]
OnExisting = Literal["resume", "new", "stop", "overwrite", "skip"]
# What a resumed run may change: none of it reaches the weights.
FREE = (
    "name", "data.train", "data.val", "export.", "probe.",
    "train.logging_steps", "train.save_steps", "train.save_total_limit", "train.report_to",
)  # fmt: skip
SAMPLES = "samples"  # stands for the data's contents among the keys, as data.train does for their place
# What a checkpoint's optimizer and sample order depend on: a start from one must find it as it was.
BOUND_TO_CHECKPOINT = (
    "model.", SAMPLES, "data.system", "data.learn", "lora.",
    "train.batch_size", "train.seed", "train.optim", "train.weight_decay",
)  # fmt: skip
BOUND_TO_ADAPTER = ("model.base", "model.revision", "lora.r", "lora.target_modules")
# Total epochs by number of samples (the user's own bands): below this many samples, from, to.
BANDS = ((20, 5.0, 8.0), (50, 4.0, 6.0), (201, 3.0, 4.0), (math.inf, 2.0, 3.0))
OVERFIT_EPOCHS = 10.0


@dataclass(frozen=True)
class Start:
    """Where a run's weights come from; `step` and `epochs` are what its parent had trained, 0 from the base."""

    kind: StartKind
    parent: Run | None = None
    checkpoint: Path | None = None
    step: int = 0
    epochs: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run before it starts. Epochs may be fractional; `total_steps` is what training will count up to."""

    recipe: Recipe
    dataset: Dataset
    start: Start
    steps_per_epoch: int
    total_steps: int
    findings: tuple[Finding, ...] = ()

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    @property
    def system(self) -> str | None:
        """The system prompt the trained model is served with: the commonest one of the samples; None where none has
        one."""
        prompts = Counter(m.content for sample in self.dataset.train for m in sample.messages if m.role == "system")
        return prompts.most_common(1)[0][0] if prompts else None

    def document(self) -> dict[str, Any]:
        """plan.json: every resolved value with its source, and the counts that follow from the data."""
        return {
            "name": self.recipe.name,
            "strategy": self.recipe.strategy,
            "parent": self.start.parent.id if self.start.parent else None,
            "start": self.start.kind,
            "start_step": self.start.step,
            "settings": [
                {"key": setting.key, "value": plain(setting.value), "source": setting.source}
                for setting in settings(self.recipe)
            ],
            "system": self.system,
            "data_fingerprint": self.dataset.fingerprint,
            "train_samples": len(self.dataset.train),
            "val_samples": len(self.dataset.val),
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "epochs": self.epochs,
        }


def plain(value: Any) -> Any:
    """A setting as JSON gives it back: tuples are lists there."""
    return list(value) if isinstance(value, tuple) else value


# Deciding -----------------------------------------------------------------------------------------------------------


def inherit(recipe: Recipe, root: Path) -> Recipe:
    """The recipe of a continuation with the parent's value wherever it leaves one unsaid; any other as it is."""
    parent = find_parent(recipe, root)
    if parent is None:
        return recipe
    own = ["name", "strategy", "continue.", "train.max_steps", "train.until."]
    if recipe.strategy in ("incremental", "augment"):
        own.append("train.epochs")  # there it counts the parent's as well
    unsaid = {setting.key for setting in settings(recipe) if setting.source.startswith("default")}
    values = {
        entry["key"]: entry["value"]
        for entry in runs.read_json(parent.plan)["settings"]
        if entry["key"] in unsaid and not entry["key"].startswith(tuple(own)) and entry["value"] is not None
    }
    return with_values(recipe, values, f"parent run {parent.id}")


def find_parent(recipe: Recipe, root: Path) -> Run | None:
    """The finished run a continuation continues from; None for a fresh recipe.

    Raises UsageError where there is none, or where it was stopped before its end.
    """
    if recipe.strategy == "fresh":
        return None
    named = recipe.continue_.parent
    if named == "latest" and not runs.list_runs(root, recipe.name):
        raise usage_error(
            "nothing-to-continue",
            _("{name} has no runs in {root} to continue from", name=recipe.name, root=root),
            where=f"{recipe.path}: strategy",
            fix=_('train it first with strategy = "fresh", or name a run of another series under continue.parent'),
        )
    parent = runs.find(root, recipe.name if named == "latest" else named)
    if parent.status != "finished":
        raise usage_error(
            "parent-unfinished",
            _("{run} was stopped before its end", run=parent.id),
            where=f"{recipe.path}: continue.parent",
            fix=_("resume it first by running its recipe again"),
        )
    return parent


def decide(recipe: Recipe, dataset: Dataset, root: Path, *, allow_overfit: bool = False) -> Plan:
    """The plan of a recipe (already inherited) for its data.

    Raises UsageError where the recipe contradicts what it continues from, or where nothing would be trained.
    """
    parent = find_parent(recipe, root)
    per_epoch = packing.steps_per_epoch(len(dataset.train), recipe.train.batch_size)
    start = find_start(recipe, parent)
    plan = Plan(recipe, dataset, start, per_epoch, total_steps(recipe, dataset, start, per_epoch))
    problems = contradictions(plan)
    if plan.total_steps <= start.step:
        problems.append(nothing_left(plan))
    if plan.epochs > OVERFIT_EPOCHS and not allow_overfit:
        problems.append(too_many_epochs(plan))
    if problems:
        raise UsageError(*problems)
    return replace(plan, findings=tuple(advise(plan)))


def find_start(recipe: Recipe, parent: Run | None) -> Start:
    """The strategy's start, or the one that the recipe names."""
    if parent is None:
        return Start("base")
    said = not recipe.sources["continue.start"].startswith("default")
    kind: StartKind = recipe.continue_.start if said else ("base" if recipe.strategy == "retune" else "checkpoint")
    before = runs.read_json(parent.plan)
    if kind == "base":
        # "trains the same total again from the base": the parent's epochs count towards the total, its weights do not
        return Start("base", parent, epochs=before["epochs"])
    if kind == "adapter":
        return Start("adapter", parent, epochs=before["epochs"])
    checkpoint, damaged = runs.newest_whole_checkpoint(parent)
    if checkpoint is None:
        raise usage_error(
            "no-checkpoint",
            _("{run} has no whole checkpoint left", run=parent.id),
            why="; ".join(damaged),
            where=f"{recipe.path}: continue.start",
            fix=_('continue.start = "adapter" goes on from its weights, with a new optimizer'),
        )
    step = runs.checkpoint_step(checkpoint)
    return Start("checkpoint", parent, checkpoint, step, step / before["steps_per_epoch"])


def total_steps(recipe: Recipe, dataset: Dataset, start: Start, per_epoch: int) -> int:
    """Steps that training counts up to, the parent's included where its checkpoint is the start."""
    if recipe.train.max_steps:
        return recipe.train.max_steps
    if recipe.strategy == "augment" and recipe.sources["train.epochs"].startswith("default"):
        return math.ceil(band_epochs(len(dataset.train)) * per_epoch)
    if recipe.continue_.add_epochs:
        return round(start.epochs * per_epoch) + math.ceil(recipe.continue_.add_epochs * per_epoch)
    return math.ceil(recipe.train.epochs * per_epoch)


def band(samples: int) -> tuple[float, float]:
    """Total epochs, from and to, that suit so many samples."""
    return next((low, high) for limit, low, high in BANDS if samples < limit)


def band_epochs(samples: int) -> float:
    """What `augment` trains in total: the middle of the band, rounded up to half an epoch."""
    low, high = band(samples)
    return math.ceil(low + high) / 2


def contradictions(plan: Plan) -> list[Finding]:
    """What a start from a parent needs unchanged and the recipe or the data changed."""
    parent, recipe = plan.start.parent, plan.recipe
    if parent is None:
        return []
    problems = []
    if recipe.strategy == "incremental" and not says_how_long(recipe):
        problems.append(how_long(plan))
    if recipe.strategy == "retune" and plan.start.kind == "checkpoint":
        problems.append(
            Finding(
                "retune-from-checkpoint",
                "error",
                f"{recipe.path}: continue.start",
                _("retune changes parameters, a checkpoint's optimizer was made with the old ones"),
                fix=_('use start = "base" or "adapter", or strategy = "incremental"'),
            )
        )  # fmt: skip
    bound = {"checkpoint": BOUND_TO_CHECKPOINT, "adapter": BOUND_TO_ADAPTER, "base": ()}[plan.start.kind]
    if plan.start.kind == "checkpoint" and recipe.strategy in ("incremental", "augment"):
        bound += ("train.learning_rate", "train.lr_scheduler_type", "train.warmup_steps")
    reason = _("{way} goes on from the {start} of {run}", way=recipe.strategy, start=plan.start.kind, run=parent.id)
    fix = _('set it back; new parameters: strategy = "retune"; new data: "custom" with continue.start = "adapter"')
    for key, old, new in differences(parent, plan):
        if key.startswith(bound or ("\0",)):
            what = _("the parent had {old}, now it is {new}", old=old, new=new)
            problems.append(Finding("continue-differs", "error", f"{recipe.path}: {key}", what, reason, fix))
    return problems


def says_how_long(recipe: Recipe) -> bool:
    """Whether a continuation's recipe says how much to train."""
    said = any(not recipe.sources[key].startswith("default") for key in ("train.epochs", "train.max_steps"))
    return said or recipe.continue_.add_epochs > 0


def how_long(plan: Plan) -> Finding:
    """An incremental run must say how many epochs to add."""
    return Finding(
        "add-epochs-missing", "error", f"{plan.recipe.path}: continue.add_epochs",
        _("incremental needs to know how many epochs to add to the parent's {epochs:.1f}", epochs=plan.start.epochs),
        fix=_("set add_epochs under [continue]; 1.0 to 3.0 is usual"),
    )  # fmt: skip


def nothing_left(plan: Plan) -> Finding:
    """A run that would train no step is an error, never a success."""
    return Finding(
        "nothing-to-train", "error", f"{plan.recipe.path}: train.epochs",
        _("the parent has trained {done} steps already, this run would end at {total}", done=plan.start.step,
        total=plan.total_steps), fix=_("raise continue.add_epochs, or train.epochs (the total, the parent's included)"),
    )  # fmt: skip


def too_many_epochs(plan: Plan) -> Finding:
    """More than ten epochs in total learn by heart."""
    return Finding(
        "too-many-epochs", "error", f"{plan.recipe.path}: train.epochs",
        _("{epochs:.1f} epochs in total; more than {limit:.0f} learn the samples by heart", epochs=plan.epochs,
        limit=OVERFIT_EPOCHS), fix=_("train fewer epochs, add data, or say --allow-overfit"),
    )  # fmt: skip


def differences(run: Run, plan: Plan) -> list[tuple[str, Any, Any]]:
    """(key, then, now) of every setting that differs from what an earlier run began with, and of the data's
    contents."""
    before, after = runs.read_json(run.plan), plan.document()
    old = {entry["key"]: entry["value"] for entry in before["settings"]}
    new = {entry["key"]: entry["value"] for entry in after["settings"]}
    old[SAMPLES], new[SAMPLES] = before["data_fingerprint"][:12], after["data_fingerprint"][:12]
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


# Advice -------------------------------------------------------------------------------------------------------------


def advise(plan: Plan) -> list[Finding]:
    """What is worth saying before the start; none of it stops the run."""
    findings = epochs_for_data(plan)
    if plan.start.parent is not None:
        findings += [*one_at_a_time(plan, plan.start.parent), *already_rising(plan, plan.start.parent)]
    return findings


def epochs_for_data(plan: Plan) -> list[Finding]:
    """Epochs outside the band for the number of samples."""
    samples = len(plan.dataset.train)
    low, high = band(samples)
    if plan.recipe.train.max_steps or low <= plan.epochs <= high + 1:
        return []
    return [
        Finding(
            "epochs-for-data", "info", f"{plan.recipe.path}: train.epochs",
            _("{epochs:.1f} epochs over {samples} samples; {low:.0f} to {high:.0f} usually suit so many",
              epochs=plan.epochs, samples=samples, low=low, high=high),
            why=_("too few leave the persona vague, too many learn it by heart"),
        )
    ]  # fmt: skip


def one_at_a_time(plan: Plan, parent: Run) -> list[Finding]:
    """More than one of epochs, learning rate and rank changed: nobody will know which one helped."""
    before = runs.read_json(parent.plan)
    changed = [key for key, _old, _new in differences(parent, plan) if key in ("train.learning_rate", "lora.r")]
    if plan.start.kind == "base" and round(plan.epochs, 3) != round(before["epochs"], 3):
        changed.insert(0, "train.epochs")
    if len(changed) < 2:
        return []
    return [
        Finding(
            "one-change-at-a-time", "warning", str(plan.recipe.path),
            _("{keys} all differ from {run}", keys=", ".join(changed), run=parent.id),
            why=_("with more than one change nobody can say which one helped"),
            fix=_("one at a time: first epochs, then the learning rate, then the rank"),
        )
    ]  # fmt: skip


def already_rising(plan: Plan, parent: Run) -> list[Finding]:
    """The parent's held-out loss was past its best: more of the same makes it worse."""
    losses = [line["eval_loss"] for line in runs.read_history(parent) if "eval_loss" in line]
    if plan.start.kind != "checkpoint" or len(losses) < 2 or losses[-1] <= min(losses) * 1.01:
        return []
    return [
        Finding(
            "held-out-loss-rising", "warning", parent.id,
            _("its held-out loss rose from {best:.3f} to {last:.3f} before it ended", best=min(losses),
            last=losses[-1]), why=_("it was learning by heart already; more epochs make that worse"),
            fix=_("add data, or retune with fewer epochs or a lower learning rate"),
        )
    ]  # fmt: skip


# Resuming -----------------------------------------------------------------------------------------------------------


def run_to_resume(root: Path, plan: Plan, on_existing: OnExisting | None) -> Run | None:
    """The stopped run to go on with, or None for a new one.

    Raises UsageError where the series has runs and what to do with them was not said, or where the recipe or the data
    differ from what the stopped run began with.
    """
    earlier = runs.list_runs(root, plan.recipe.name)
    if not earlier or on_existing == "new":
        return None
    newest = earlier[-1]
    unfinished = newest.status == "stopped" or (newest.status == "finished" and not newest.answered)
    if unfinished and on_existing in (None, "resume") and newest.provenance.is_file():
        if changes := [entry for entry in differences(newest, plan) if not entry[0].startswith(FREE)]:
            raise UsageError(*(resume_differs(newest, *change) for change in changes))
        return newest
    if plan.recipe.strategy != "fresh" and newest.status == "finished":
        return None  # a continuation of a finished run is a new run by its nature
    raise usage_error(
        "series-exists",
        _("{name} has {count} run(s); the newest is {run}", name=plan.recipe.name, count=len(earlier), run=newest.id),
        where=str(root),
        fix=_("--on-existing new trains another one and keeps the old; --continue incremental (or retune, augment, "
              "custom) "
              "goes on from it; `fasttune chat {name}` uses what is there", name=plan.recipe.name),
    )  # fmt: skip


def resume_differs(run: Run, key: str, old: Any, new: Any) -> Finding:
    """One thing a stopped run began with that is said otherwise now; a resumed run must not mix the two."""
    return Finding(
        "resume-differs", "error", f"{run.id}: {key}",
        _("the stopped run began with {old}, now it is {new}", old=old, new=new),
        why=_("a resumed run must equal one that was never stopped"),
        fix=_('set it back to resume; for other parameters --continue retune, for other data --continue custom; '
              "--on-existing new starts over beside it"),
    )  # fmt: skip
