"""What a recipe's run will do: where it starts from, what it inherits, how many steps it takes. Starts nothing.

    strategy      starts from                          steps
    fresh         the base                             epochs of the recipe
    incremental   all state of the parent's last       the parent's + add_epochs
                  checkpoint (or the base, with the
                  same total)
    retune        the base (or the parent's adapter)   epochs
    augment       as incremental                       a total chosen from the size of the data
    custom        checkpoint, adapter or base          epochs, or the parent's + add_epochs

A continuation inherits every setting of its parent that its recipe leaves out. Whatever the strategy: where the newest
run of the series was stopped before its end, running the recipe again resumes it.

From a checkpoint, the learning rate at step s is schedule(s, new total), as if the total had been known from the start.
It needs no state; where it jumps at the parent's last step, the jump is printed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fasttune.command import OnExisting
from fasttune.console import SEMICOLON, Finding, UsageError, _, ngettext, usage_error
from fasttune.data import batches
from fasttune.data.dataset import Dataset
from fasttune.data.fact_prompt import with_facts
from fasttune.data.fact_sheet import read_fact_sheet
from fasttune.planning import auto_values, lengths
from fasttune.planning.differing import held_out_that_was_trained, refused_differences
from fasttune.planning.parents import (
    MORE,
    MORE_EPOCHS,
    OVERFIT_EPOCHS,
    epoch_to_continue,
    find_parent,
    first_of_series,
    run_command,
    start_kind,
    trained_steps,
)
from fasttune.recipe.load import settings
from fasttune.recipe.schema import Recipe
from fasttune.runs import checkpoints, documents, epochs
from fasttune.runs.checkpoints import best_left_behind, damage_findings
from fasttune.runs.documents import PlanDocument, StartKind
from fasttune.runs.epochs import KeptEpoch
from fasttune.runs.store import Run
from fasttune.runs.typed_json import as_json


@dataclass(frozen=True)
class Start:
    """Where a run's weights come from.

    `step` is the checkpoint's, from which training counts on; `epochs` are the parent's over the same samples, which
    count towards a total; `damaged` holds a sentence about each newer checkpoint that is not whole. `adapter` is the
    folder to begin with where `kind` says so; `picked` the parent's epoch that it or the checkpoint is of, None for the
    parent's last.
    """

    kind: StartKind
    parent: Run | None = None
    checkpoint: Path | None = None
    step: int = 0
    epochs: float = 0.0
    damaged: tuple[str, ...] = ()
    adapter: Path | None = None
    picked: float | None = None


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
    def trained_epochs(self) -> float:
        """Epochs over these samples at the end: the run's, and those of the adapter that it starts from."""
        return self.epochs + (self.start.epochs if self.start.kind == "adapter" else 0.0)

    @property
    def keeps_epochs(self) -> bool:
        """Whether the adapter of each epoch is kept: as train.keep_epochs says, for "auto" where samples are held
        out."""
        keep = self.recipe.train.keep_epochs
        return bool(self.dataset.held_out) if keep == "auto" else keep

    @property
    def kept_epochs(self) -> int:
        """How many adapters that is: one for each whole epoch of this run, and one where it ends between two."""
        whole = self.total_steps // self.steps_per_epoch - self.start.step // self.steps_per_epoch
        return (whole + bool(self.total_steps % self.steps_per_epoch)) * self.keeps_epochs

    @property
    def system(self) -> str | None:
        """The system prompt that is trained: the most frequent one of the training samples, of equally frequent ones
        the first; None where no sample has one."""
        prompts = Counter(m.content for sample in self.dataset.train for m in sample.messages if m.role == "system")
        return prompts.most_common(1)[0][0] if prompts else None

    @cached_property
    def served_system(self) -> str | None:
        """The system prompt the trained model is served with, by export.prompt: `system`, or that and the facts of the
        sheet. Raises UsageError where the sheet can't be read."""
        sheet, trained = Path(self.recipe.facts.file), Path(self.recipe.data.system_facts)
        if self.recipe.export.prompt != "facts" or sheet.resolve() == trained.resolve():
            return self.system  # the facts are not told, or stand in it already
        return with_facts(self.system, read_fact_sheet(sheet))

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
            general_samples=len(self.dataset.general),
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            epochs=self.epochs,
            start_epoch=self.start.picked,
            with_facts=self.served_system if self.recipe.export.prompt == "facts" else None,
        )


# Deciding -----------------------------------------------------------------------------------------------------------


def decide(
    recipe: Recipe, dataset: Dataset, root: Path, *, allow_overfit: bool = False, on_existing: OnExisting | None = None
) -> Plan:
    """The plan of a recipe (already inherited) for its data.

    Raises UsageError where the recipe contradicts what it continues from, or where nothing would be trained.
    """
    parent = find_parent(recipe, root, on_existing)
    recipe, left_out = lengths.one_length(recipe) if parent else (recipe, [])
    stopped = auto_values.run_to_follow(root, recipe) if on_existing in (None, "resume") else None
    recipe = auto_values.resolved(recipe, dataset, parent, stopped)
    per_epoch = batches.steps_per_epoch(len(dataset.trained), recipe.train.samples_per_step)
    start = find_start(recipe, dataset, parent, stopped)
    steps = total_steps(recipe, dataset, start, per_epoch)
    own_epochs = (steps - start.step) / per_epoch
    recipe = auto_values.with_learning_rate(recipe, own_epochs, len(dataset.train), parent, stopped)
    plan = Plan(recipe, dataset, start, per_epoch, steps)
    problems = contradictions(plan, root, "new" if on_existing == "new" else None)
    if plan.total_steps <= start.step and not problems:
        problems.append(nothing_to_train(plan, root))
    if plan.trained_epochs > OVERFIT_EPOCHS and not allow_overfit:
        problems.append(too_many_epochs(plan, root))
    if problems:
        raise UsageError(*problems)
    damaged = damage_findings(parent, start.checkpoint, start.damaged) if parent else []
    adapter = run_command(recipe, root, "continue.start=adapter", strategy="custom")
    damaged += best_left_behind(parent, start.checkpoint, adapter) if parent and start.picked is None else []
    damaged += begins_with_picked(plan)
    damaged += held_out_that_was_trained(plan, root, "new" if on_existing == "new" else None)
    return replace(plan, findings=(*first_of_series(recipe, parent), *left_out, *damaged))


def find_start(recipe: Recipe, dataset: Dataset, parent: Run | None, resumed: Run | None = None) -> Start:
    """The start that the recipe names, else the strategy's; from the parent's picked epoch, where one is picked.

    Raises UsageError where it needs a checkpoint and none is whole.
    """
    if parent is None:
        return Start("base")
    kind = start_kind(recipe)
    before = documents.read_plan(parent)
    trained = trained_steps(parent) / before.steps_per_epoch
    if kind == "base":
        # add_epochs from the base trains the parent's total and the added epochs anew
        return Start("base", parent, epochs=trained)
    picked = epoch_to_continue(parent, resumed)
    if kind == "adapter":
        trained = picked.epoch if picked else trained
        count = trained if before.data_fingerprint == dataset.fingerprint else 0.0
        folder, number = (picked.folder, picked.epoch) if picked else (parent.adapter, None)
        return Start("adapter", parent, epochs=count, adapter=folder, picked=number)
    if picked is not None:
        return start_at_picked(recipe, parent, picked)
    checkpoint, damaged = checkpoints.newest_whole_checkpoint(parent)
    if checkpoint is None:
        raise usage_error(
            "no-checkpoint",
            _("{run} has no complete checkpoint left", run=parent.id),
            why=_(SEMICOLON).join(damaged),
            where=f"{recipe.path}: continue.start",
            fix=_('continue.start = "adapter" starts from its weights, with a new optimizer'),
        )
    return Start("checkpoint", parent, checkpoint, checkpoints.checkpoint_step(checkpoint), trained, tuple(damaged))


def start_at_picked(recipe: Recipe, parent: Run, picked: KeptEpoch) -> Start:
    """The start from the checkpoint of the parent's picked epoch. Raises UsageError where it is not there, or damaged:
    then the person says which of two ways is meant."""
    checkpoint = parent.checkpoints / f"checkpoint-{picked.step}"
    flaw = checkpoints.find_damage(checkpoint) if checkpoint.is_dir() else ""
    if checkpoint.is_dir() and not flaw:
        return Start("checkpoint", parent, checkpoint, picked.step, picked.epoch, picked=picked.epoch)
    epoch = epochs.epoch_word(picked.epoch)
    what = _("epoch {epoch} of {run} is picked, and no complete checkpoint of its step {step} is left", epoch=epoch,
             run=parent.id, step=picked.step)  # fmt: skip
    adapter = run_command(recipe, parent.root, "continue.start=adapter", *added(recipe), strategy="custom")
    fix = _("`{adapter}` begins with the weights of that epoch and a new optimizer; `{own}`, then the same command, "
            "continues from the end of the run", adapter=adapter, own=epochs.pick_command(parent, "--own"))  # fmt: skip
    raise usage_error("picked-without-checkpoint", what, where=f"{recipe.path}: continue.start", why=flaw, fix=fix)


def added(recipe: Recipe) -> list[str]:
    """The override that adds the recipe's epochs, for a command of another strategy."""
    return [f"continue.add_epochs={recipe.continue_.add_epochs:g}"] if recipe.continue_.add_epochs else []


def begins_with_picked(plan: Plan) -> list[Finding]:
    """Say that a continuation begins with the parent's picked epoch, which is not its last."""
    start = plan.start
    if start.picked is None or start.parent is None:
        return []
    what = _("begins with epoch {epoch} of {run}, which is picked, not with its last step {last}",
             epoch=epochs.epoch_word(start.picked), run=start.parent.id, last=trained_steps(start.parent))  # fmt: skip
    own = epochs.pick_command(start.parent, "--own")
    fix = _("to begin with the end of that run, first: `{command}`", command=own)
    return [Finding("begins-with-picked", "info", f"{plan.recipe.path}: continue.parent", what, fix=fix)]


def total_steps(recipe: Recipe, dataset: Dataset, start: Start, per_epoch: int) -> int:
    """The step at which training ends; the parent's steps count unless only its adapter is the start."""
    if recipe.train.max_steps:
        return recipe.train.max_steps
    if recipe.continue_.add_epochs and start.parent is not None:
        before = 0 if start.kind == "adapter" else round(start.epochs * per_epoch)
        return before + lengths.steps_in(recipe.continue_.add_epochs, per_epoch)
    if recipe.strategy == "augment" and not lengths.states_its_total(recipe):
        return lengths.steps_in(lengths.augmented_epochs(len(dataset.train), start.epochs), per_epoch)
    return lengths.steps_in(recipe.train.passes, per_epoch)


def contradictions(plan: Plan, root: Path, on_existing: OnExisting | None) -> list[Finding]:
    """The findings about settings and data that must equal the parent's, and do not, for this start."""
    parent, recipe = plan.start.parent, plan.recipe
    if parent is None:
        return []
    problems = []
    if recipe.strategy == "incremental" and not lengths.names_a_length(recipe):
        problems.append(add_epochs_missing(plan, root))
    if recipe.strategy == "retune" and plan.start.kind == "checkpoint":
        problems.append(
            Finding(
                "retune-from-checkpoint",
                "error",
                f"{recipe.path}: continue.start",
                _("retune changes settings that a checkpoint's optimizer state depends on"),
                fix=_('use start = "base" or "adapter", or strategy = "incremental"'),
            )
        )  # fmt: skip
    return problems + refused_differences(plan, parent, root, on_existing)


def add_epochs_missing(plan: Plan, root: Path) -> Finding:
    """The finding about an incremental recipe that does not set how many epochs to add."""
    return Finding(
        "add-epochs-missing", "error", f"{plan.recipe.path}: continue.add_epochs",
        _("incremental needs to know how many epochs to add to the parent's {epochs:.1f}", epochs=plan.start.epochs),
        fix=_("1.0 to 3.0 is usual: `{command}`", command=longer(plan, root)),
    )  # fmt: skip


def nothing_to_train(plan: Plan, root: Path) -> Finding:
    """The finding about a run that would train no step."""
    key = "train.max_steps" if plan.recipe.train.max_steps else "train.epochs"
    if plan.start.parent is None:
        what = _("so small a share of an epoch comes to no step")
        return Finding("nothing-to-train", "error", f"{plan.recipe.path}: {key}", what, fix=_("write 1 or more"))
    return Finding(
        "nothing-to-train", "error", f"{plan.recipe.path}: {key}",
        ngettext("the parent has trained {n} step already, this run would end at {total}",
                 "the parent has trained {n} steps already, this run would end at {total}", plan.start.step,
                 total=plan.total_steps),
        _("{key} is a total, the parent's included", key=key),
        _("say how many epochs to add: `{command}`", command=longer(plan, root)),
    )  # fmt: skip


def longer(plan: Plan, root: Path) -> str:
    """The command that adds epochs to the parent's by the same strategy."""
    return run_command(plan.recipe, root, MORE_EPOCHS, strategy=plan.recipe.strategy,
                       allow_overfit=plan.start.epochs + MORE > OVERFIT_EPOCHS)  # fmt: skip


def too_many_epochs(plan: Plan, root: Path) -> Finding:
    """The finding about more than OVERFIT_EPOCHS epochs over the same samples."""
    command = run_command(plan.recipe, root, allow_overfit=True)
    return Finding(
        "too-many-epochs", "error", f"{plan.recipe.path}: train.epochs",
        _("{epochs:.1f} epochs in total; more than {limit:.0f} over-fit", epochs=plan.trained_epochs,
        limit=OVERFIT_EPOCHS), fix=_("train fewer epochs, add data, or all the same: `{command}`", command=command),
    )  # fmt: skip
