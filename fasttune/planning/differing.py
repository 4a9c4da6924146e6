"""What a continuation or a resumed run must share with the run that it starts from, what differs, and what to type.

    start from    bound to
    checkpoint    the samples and every setting that optimizer, schedule and order of samples depend on
    adapter       its shape and its base
    base          nothing

A difference is refused with the whole commands that do what may have been meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.command import OnExisting
from fasttune.console import Finding, _, ngettext
from fasttune.data.additions import Trained, added_since, held_out_of_trained
from fasttune.data.dataset import Dataset
from fasttune.planning import lengths
from fasttune.planning.parents import run_command, typed_value
from fasttune.recipe.schema import KEYS, Recipe
from fasttune.runs import documents
from fasttune.runs.documents import PlanDocument
from fasttune.runs.run_files import RunFiles
from fasttune.runs.store import Run
from fasttune.runs.typed_json import as_json

if TYPE_CHECKING:
    from fasttune.planning.strategy import Plan

SAMPLES = "samples"  # stands among the keys for the data's contents, as data.train stands for the files
# The settings that a checkpoint's optimizer and sample order depend on: a start from one must find them unchanged.
BOUND_TO_CHECKPOINT = (
    "model.", SAMPLES, "data.system", "data.learn", "data.replay", "lora.",
    "train.batch_size", "train.seed", "train.optim", "train.weight_decay",
)  # fmt: skip
BOUND_TO_ADAPTER = ("model.base", "model.revision", "lora.r", "lora.alpha", "lora.target_modules")
Difference = tuple[str, Any, Any]  # key, then, now


def differences(run: Run, plan: Plan) -> list[Difference]:
    """(key, then, now) of every setting that differs from what an earlier run began with, and of the data's contents.

    A setting that did not exist then is taken to have had its present default, which changes nothing.
    """
    before, after, base = documents.read_plan(run), plan.document(), documents.read_setting(run, "model.base", str)
    new = after.values
    old = {key: as_json(KEYS[key].default) for key in new} | before.values
    old[SAMPLES], new[SAMPLES] = before.data_fingerprint[:12], after.data_fingerprint[:12]
    renamed = ("model.base", "model.revision") if is_another_name(base, new["model.base"]) else ()
    return [(key, old.get(key), new.get(key)) for key in {**old, **new}
            if old.get(key) != new.get(key) and key not in renamed]  # fmt: skip


def is_another_name(old: str, new: str) -> bool:
    """Whether two names of bases may be names of the same weights: a folder that was moved, a link, the local copy of a
    hub's snapshot. Whether they are, the fingerprints of the weights decide before training."""
    paths = (".", "/", "~")
    to_hub = old.startswith(paths) and not new.startswith(paths) and new.count("/") == 1
    return old != new and (Path(new).expanduser().is_dir() or to_hub)


def refused_differences(plan: Plan, parent: Run, root: Path, on_existing: OnExisting | None) -> list[Finding]:
    """A finding for each thing that this start must find as the parent had it, and does not; each with the commands
    that do what was meant."""
    recipe, kind = plan.recipe, plan.start.kind
    bound = {"checkpoint": BOUND_TO_CHECKPOINT, "adapter": BOUND_TO_ADAPTER, "base": ()}[kind]
    if kind == "checkpoint" and recipe.strategy in ("incremental", "augment"):
        bound += ("train.learning_rate", "train.lr_scheduler_type", "train.warmup_steps")
    changed = [one for one in differences(parent, plan) if one[0].startswith(bound or ("\0",))]
    if not changed:
        return []
    is_other_data = any(key == SAMPLES for key, _old, _new in changed)
    fix = (with_other_data if is_other_data else with_other_settings)(plan, changed, root, on_existing)
    why = _("{way} continues from the {start} of {run}", way=recipe.strategy, start=kind, run=parent.id)
    found = []
    for key, old, new in changed:
        what = _("the parent had {old}, now it is {new}", old=old, new=new)
        if key == SAMPLES:
            what = samples_in_words(parent, recipe, plan.dataset)
        found.append(Finding("continue-differs", "error", f"{recipe.path}: {key}", what, why, fix))
    return found


def samples_in_words(run: Run, recipe: Recipe, dataset: Dataset) -> str:
    """What has become of a run's samples, as far as its plan.json tells it; "" where they are the same."""
    before = documents.read_plan(run)
    if before.data_fingerprint == dataset.fingerprint:
        return ""
    then, old, new = samples_of(before), before.values.get("data.val", ""), recipe.data.val
    added = added_since(then, dataset, recipe.data, recipe.train.seed)
    if added:
        return ngettext("{n} sample is new; the {before} of {run} stand before it unchanged",
                        "{n} samples are new; the {before} of {run} stand before them unchanged", added,
                        before=then.samples, run=run.id)  # fmt: skip
    if added == 0:
        return _("the samples are those of {run}, but others are held out: data.val was {old}, now it is {new}",
                 run=run.id, old=as_typed(old), new=as_typed(new))  # fmt: skip
    now = Trained("", len(dataset.train), len(dataset.held_out), new).samples
    return _("some of the {before} samples of {run} are changed, moved or gone, it does not keep which; there are "
             "{now} now", before=then.samples, run=run.id, now=now)  # fmt: skip


def held_out_that_was_trained(plan: Plan, root: Path, on_existing: OnExisting | None) -> list[Finding]:
    """A warning where weights are trained further and samples are held out that they were trained on, by the parent or
    a run before it: a share of other samples is another one, and the held-out loss of these is too low to judge by."""
    recipe, dataset = plan.recipe, plan.dataset
    if plan.start.parent is None or plan.start.kind == "base" or isinstance(recipe.data.val, str):
        return []
    for parent, before in in_the_weights(plan.start.parent):
        if before.data_fingerprint != dataset.fingerprint:
            seen = held_out_of_trained(samples_of(before), dataset, recipe.data, recipe.train.seed)
            if seen != 0:
                return [held_out_was_trained(plan, parent, seen, anew(plan, root, on_existing))]
    return []


def in_the_weights(run: Run) -> Iterator[tuple[Run, PlanDocument]]:
    """The run and those before it that its weights come from, newest first, as far as they are there."""
    found: RunFiles | None = RunFiles(run)
    while found is not None and found.plan is not None:
        yield found.run, found.plan
        found = found.parent if found.plan.start != "base" else None


def held_out_was_trained(plan: Plan, parent: Run, seen: int | None, anew: str) -> Finding:
    """The warning about the held-out samples that a run was trained on; `seen` is None where it can't be told."""
    recipe, dataset = plan.recipe, plan.dataset
    what = _("samples that are held out now may be among those that {run} was trained on", run=parent.id)
    if seen:
        what = ngettext("{n} of the {all} samples that are held out now was trained on by {run}",
                        "{n} of the {all} samples that are held out now were trained on by {run}", seen,
                        all=len(dataset.held_out), run=parent.id)  # fmt: skip
    why = _("a share is held out of other samples than then: the held-out loss will look better than it is")
    fix = _("name a file as data.val, of samples that were never trained on; or train anew from the base: `{anew}`",
            anew=anew)  # fmt: skip
    return Finding("held-out-was-trained", "warning", f"{recipe.path}: data.val", what, why, fix)


def samples_of(plan: PlanDocument) -> Trained:
    """What a run's plan.json keeps of its samples."""
    return Trained(plan.data_fingerprint, plan.train_samples, plan.val_samples, plan.values.get("data.val", ""))


def as_typed(value: Any) -> str:
    """A value as a recipe has it."""
    return typed_value(value) if value != "" else '""'


# What to type -------------------------------------------------------------------------------------------------------


def with_other_data(plan: Plan, changed: list[Difference], root: Path, on_existing: OnExisting | None) -> str:
    """The commands for samples that are not the parent's: its adapter trained further, and a training anew."""
    back = {key: old for key, old, _new in changed if key.startswith(BOUND_TO_ADAPTER) and old is not None}
    epochs = f"continue.add_epochs={epochs_for_other_data(plan):g}"
    settings = [*typed(back), "continue.start=adapter", epochs]
    further = run_command(plan.recipe, root, *settings, strategy="custom", on_existing=on_existing)
    return _("`{further}` trains the parent's adapter further on the samples of now, with a new optimizer; `{anew}` "
             "trains anew from the base", further=further, anew=anew(plan, root, on_existing))  # fmt: skip


def with_other_settings(plan: Plan, changed: list[Difference], root: Path, on_existing: OnExisting | None) -> str:
    """The commands for settings that are not the parent's: the same with those of the parent, and a training anew."""
    unset = [key for key, old, _new in changed if old is None]
    if unset:
        return _("leave {keys} out of the recipe, as the parent did; `{anew}` trains anew from the base with what it "
                 "says", keys=", ".join(unset), anew=anew(plan, root, on_existing))  # fmt: skip
    back = {key: old for key, old, _new in changed}
    same = run_command(plan.recipe, root, *typed(back), on_existing=on_existing)
    return _("`{same}` continues with the parent's values; `{anew}` trains anew from the base with those of now",
             same=same, anew=anew(plan, root, on_existing))  # fmt: skip


def anew(plan: Plan, root: Path, on_existing: OnExisting | None) -> str:
    """The command that trains the recipe from the base, in the same series."""
    return run_command(plan.recipe, root, strategy="retune", on_existing=on_existing)


def epochs_for_other_data(plan: Plan) -> float:
    """How many epochs of other data to train an adapter: as many as were asked for, else what the number of samples
    lacks, and at least one."""
    recipe, trained = plan.recipe, plan.start.epochs
    if recipe.continue_.add_epochs:
        return recipe.continue_.add_epochs
    total = recipe.train.passes if lengths.states_its_total(recipe) else 0.0
    return round(total - trained, 4) if total > trained else lengths.lacking_epochs(len(plan.dataset.train), trained)


def typed(values: Mapping[str, Any]) -> list[str]:
    """Settings as they are typed after --set."""
    return [f"{key}={typed_value(value)}" for key, value in values.items()]
