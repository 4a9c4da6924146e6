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

from fasttune.console import Finding, UsageError, _, ngettext, usage_error
from fasttune.data import batches
from fasttune.data.dataset import Dataset
from fasttune.recipe.load import settings, with_values
from fasttune.recipe.schema import KEYS, Recipe
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.checkpoints import damage_findings
from fasttune.runs.documents import PlanDocument, StartKind, as_json
from fasttune.runs.store import Run

OnExisting = Literal["resume", "new", "stop", "overwrite", "skip"]
SAMPLES = "samples"  # stands for the data's contents among the keys, as data.train does for their place
# What a checkpoint's optimizer and sample order depend on: a start from one must find it as it was.
BOUND_TO_CHECKPOINT = (
    "model.", SAMPLES, "data.system", "data.learn", "lora.",
    "train.batch_size", "train.seed", "train.optim", "train.weight_decay",
)  # fmt: skip
BOUND_TO_ADAPTER = ("model.base", "model.revision", "lora.r", "lora.alpha", "lora.target_modules")
# Total epochs by number of samples (the user's own bands): below this many samples, from, to.
BANDS = ((20, 5.0, 8.0), (50, 4.0, 6.0), (201, 3.0, 4.0), (math.inf, 2.0, 3.0))
OVERFIT_EPOCHS = 10.0


@dataclass(frozen=True)
class Start:
    """Where a run's weights come from.

    `step` is the checkpoint's, where training begins to count; `epochs` are the parent's over the same samples, which
    count towards a total; `damaged` says of newer checkpoints why they are not the start.
    """

    kind: StartKind
    parent: Run | None = None
    checkpoint: Path | None = None
    step: int = 0
    epochs: float = 0.0
    damaged: tuple[str, ...] = ()


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
    def learned_epochs(self) -> float:
        """Epochs that the weights will have learned these samples for: an adapter's count on top of the run's own."""
        return self.epochs + (self.start.epochs if self.start.kind == "adapter" else 0.0)

    @property
    def system(self) -> str | None:
        """The system prompt the trained model is served with: the commonest one of the samples; None where none has
        one."""
        prompts = Counter(m.content for sample in self.dataset.train for m in sample.messages if m.role == "system")
        return prompts.most_common(1)[0][0] if prompts else None

    def document(self) -> PlanDocument:
        """What plan.json holds: every resolved value with its source, and the counts that follow from the data."""
        return PlanDocument(
            name=self.recipe.name,
            strategy=self.recipe.strategy,
            parent=self.start.parent.id if self.start.parent else None,
            start=self.start.kind,
            start_step=self.start.step,
            settings=tuple(replace(setting, value=as_json(setting.value)) for setting in settings(self.recipe)),
            system=self.system,
            data_fingerprint=self.dataset.fingerprint,
            train_samples=len(self.dataset.train),
            val_samples=len(self.dataset.held_out),
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            epochs=self.epochs,
        )


# Deciding -----------------------------------------------------------------------------------------------------------


def inherit(recipe: Recipe, root: Path, on_existing: OnExisting | None = None) -> Recipe:
    """The recipe of a continuation with the parent's value wherever it leaves one unsaid; any other as it is.

    What the parent had left to a default that follows from other settings (alpha = 2 × r) follows from them anew. Its
    epochs are those it trained, in whatever way they came about.
    """
    parent = find_parent(recipe, root, on_existing)
    if parent is None:
        return recipe
    own = ["name", "strategy", "continue.", "train.epochs", "train.max_steps", "train.until."]
    unsaid = {setting.key for setting in settings(recipe) if setting.source.startswith("default")}
    before = documents.read_plan(parent)
    if recipe.train.lr_scheduler_type == "constant":
        own.append("train.warmup_steps")  # it has none
    values = {
        setting.key: setting.value
        for setting in before.settings
        if setting.key in unsaid
        and not setting.key.startswith(tuple(own))
        and not setting.source.startswith("default (")
        and setting.value is not None
    }
    if recipe.strategy in ("retune", "custom") and "train.epochs" in unsaid:  # elsewhere a total, to be said or chosen
        values["train.epochs"] = trained_steps(parent) / before.steps_per_epoch
    return with_values(recipe, values, f"parent run {parent.id}")


def find_parent(recipe: Recipe, root: Path, on_existing: OnExisting | None = None) -> Run | None:
    """The finished run a continuation continues from; None for a fresh recipe.

    A run that is gone on with keeps the parent it began from, also where `current` has moved on since. Raises
    UsageError where there is no parent, or where it was stopped before its end.
    """
    if recipe.strategy == "fresh":
        return None
    named = recipe.continue_.parent
    if named == "latest" and not store.list_runs(root, recipe.name):
        raise usage_error(
            "nothing-to-continue",
            _("{name} has no runs in {root} to continue from", name=recipe.name, root=root),
            where=f"{recipe.path}: strategy",
            fix=_('train it first with strategy = "fresh", or name a run of another series under continue.parent'),
        )
    begun = unfinished(root, recipe.name) if on_existing in (None, "resume") and named == "latest" else None
    before = documents.read_plan(begun) if begun else None
    if before and before.parent and before.strategy == recipe.strategy:
        named = before.parent
    parent = store.find(root, recipe.name if named == "latest" else named)
    if parent.status == "running":
        raise is_running(parent)
    if parent.status != "finished":
        raise usage_error(
            "parent-unfinished",
            _("{run} was stopped before its end", run=parent.id),
            where=f"{recipe.path}: continue.parent",
            fix=_("resume it first by running its recipe again"),
        )
    return parent


def decide(
    recipe: Recipe, dataset: Dataset, root: Path, *, allow_overfit: bool = False, on_existing: OnExisting | None = None
) -> Plan:
    """The plan of a recipe (already inherited) for its data.

    Raises UsageError where the recipe contradicts what it continues from, or where nothing would be trained.
    """
    parent = find_parent(recipe, root, on_existing)
    per_epoch = batches.steps_per_epoch(len(dataset.train), recipe.train.batch_size)
    start = find_start(recipe, dataset, parent)
    plan = Plan(recipe, dataset, start, per_epoch, total_steps(recipe, dataset, start, per_epoch))
    problems = contradictions(plan)
    if plan.total_steps <= start.step and not problems:
        problems.append(nothing_left(plan))
    if plan.learned_epochs > OVERFIT_EPOCHS and not allow_overfit:
        problems.append(too_many_epochs(plan))
    if problems:
        raise UsageError(*problems)
    damaged = damage_findings(parent, start.checkpoint, start.damaged) if parent else []
    return replace(plan, findings=tuple(damaged))


def find_start(recipe: Recipe, dataset: Dataset, parent: Run | None) -> Start:
    """The strategy's start, or the one that the recipe names."""
    if parent is None:
        return Start("base")
    said = not recipe.sources["continue.start"].startswith("default")
    kind: StartKind = recipe.continue_.start if said else ("base" if recipe.strategy == "retune" else "checkpoint")
    before = documents.read_plan(parent)
    trained = trained_steps(parent) / before.steps_per_epoch
    if kind == "base":
        # "trains the same total again from the base": the parent's epochs count towards the total, its weights do not
        return Start("base", parent, epochs=trained)
    if kind == "adapter":
        return Start("adapter", parent, epochs=trained if before.data_fingerprint == dataset.fingerprint else 0.0)
    checkpoint, damaged = checkpoints.newest_whole_checkpoint(parent)
    if checkpoint is None:
        raise usage_error(
            "no-checkpoint",
            _("{run} has no whole checkpoint left", run=parent.id),
            why="; ".join(damaged),
            where=f"{recipe.path}: continue.start",
            fix=_('continue.start = "adapter" goes on from its weights, with a new optimizer'),
        )
    return Start("checkpoint", parent, checkpoint, checkpoints.checkpoint_step(checkpoint), trained, tuple(damaged))


def trained_steps(run: Run) -> int:
    """Steps that a finished run came to; fewer than planned where `until` or early stopping ended it."""
    if not run.trainer_state.is_file():
        return documents.read_plan(run).total_steps
    return documents.read_trainer_state(run).global_step


def total_steps(recipe: Recipe, dataset: Dataset, start: Start, per_epoch: int) -> int:
    """Steps that training counts up to, the parent's included unless its adapter alone is the start."""
    if recipe.train.max_steps:
        return recipe.train.max_steps
    if recipe.continue_.add_epochs and start.parent is not None:
        before = 0 if start.kind == "adapter" else round(start.epochs * per_epoch)
        return before + steps_in(recipe.continue_.add_epochs, per_epoch)
    if recipe.strategy == "augment" and recipe.sources["train.epochs"].startswith("default"):
        return steps_in(band_epochs(len(dataset.train)), per_epoch)
    return steps_in(recipe.train.epochs, per_epoch)


def steps_in(epochs: float, per_epoch: int) -> int:
    """Steps of so many epochs, a begun one counted; 1.1 epochs of 10 steps are 11, whatever floats say."""
    return math.ceil(round(epochs * per_epoch, 6))


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
        ngettext("the parent has trained {n} step already, this run would end at {total}",
                 "the parent has trained {n} steps already, this run would end at {total}", plan.start.step,
                 total=plan.total_steps),
        fix=_("raise continue.add_epochs, or train.epochs (the total, the parent's included)"),
    )  # fmt: skip


def too_many_epochs(plan: Plan) -> Finding:
    """More than ten epochs in total learn by heart."""
    return Finding(
        "too-many-epochs", "error", f"{plan.recipe.path}: train.epochs",
        _("{epochs:.1f} epochs in total; more than {limit:.0f} learn the samples by heart", epochs=plan.learned_epochs,
        limit=OVERFIT_EPOCHS), fix=_("train fewer epochs, add data, or say --allow-overfit"),
    )  # fmt: skip


def differences(run: Run, plan: Plan) -> list[tuple[str, Any, Any]]:
    """(key, then, now) of every setting that differs from what an earlier run began with, and of the data's contents.

    A setting that did not exist then had its default of today: a new setting starts by changing nothing.
    """
    before, after = documents.read_plan(run), plan.document()
    new = after.values
    old = {key: as_json(KEYS[key].default) for key in new} | before.values
    old[SAMPLES], new[SAMPLES] = before.data_fingerprint[:12], after.data_fingerprint[:12]
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def unfinished(root: Path, series: str) -> Run | None:
    """The newest run of a series where it is one to go on with: stopped, or trained without its files being made."""
    newest = next(reversed(store.list_runs(root, series)), None)
    if newest is None or newest.status == "running" or not newest.provenance.is_file():
        return None
    return None if newest.status == "finished" and documents.is_answered(newest) else newest


def is_running(run: Run) -> UsageError:
    """Two processes must not train into one folder."""
    return usage_error(
        "run-is-locked", _("another process is training {run}", run=run.id), fix=_("wait for it, or stop it first")
    )
