"""The menu of `fasttune run` where the series has runs: what to do with them.

It appears where stdin and stderr are a terminal and no flag decides. It changes nothing: the answers become a
`RunRequest`, which is printed as the command line that asks no questions, and handed back.

    resume     the newest run, which was stopped
    continue   incremental | retune | augment | custom, each with its questions (questions.py); or with other samples,
               which is custom from the adapter
    new        another run beside the old ones
    overwrite  a run, whose id is typed in full
    skip       training; show the run that is there
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fasttune.analysis import advisor, words
from fasttune.command import OnExisting
from fasttune.console import FasttuneError, Finding, UsageError, _, can_ask, ngettext, say, show_findings
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning import parents
from fasttune.planning.differing import samples_in_words
from fasttune.planning.parents import began_with, typed_value, unfinished
from fasttune.planning.resume import run_to_resume
from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import Recipe
from fasttune.runs import checkpoints, documents, store, summary
from fasttune.runs.store import Run
from fasttune.terminal import prompts, questions, runs_tree

SHOWN_RUNS = 20  # the newest ones, where a series has more
BACK, CANCEL, DATA = "back", "cancel", "data"


@dataclass(frozen=True)
class Series:
    """A request, its recipe and the runs of its series; `parent` is the run to continue from, None where none is
    finished."""

    request: RunRequest
    recipe: Recipe
    earlier: list[Run]
    parent: Run | None

    @property
    def newest(self) -> Run:
        return self.earlier[-1]


def needs_answer(request: RunRequest, planner: Planner) -> bool:
    """Whether a `fasttune run` does not say what to do with the runs there are, and somebody can be asked.

    A recipe with a strategy of its own says it, unless the newest run of the series was stopped.
    """
    if request.strategy or request.on_existing or request.overwrite or not can_ask():
        return False
    series = read_series(request, planner)
    return series is not None and (series.recipe.strategy == "fresh" or not documents.is_complete(series.newest))


def ask_about_existing(request: RunRequest, planner: Planner) -> RunRequest:
    """Ask what to do with the runs there are until the person starts one.

    Raises KeyboardInterrupt where the person cancels.
    """
    series = read_series(request, planner)
    assert series is not None  # as `needs_answer` found
    findings: list[Finding] = []
    figures = summary.read_series(request.root, series.recipe.name, findings)
    say(ngettext("{name} has {n} run:", "{name} has {n} runs:", len(figures), name=series.recipe.name))
    show_findings(findings)
    for one in figures[-SHOWN_RUNS:]:
        say(f"  {'→' if one.current else ' '} {runs_tree.state_line(one)}")
    show_advice(series.parent or series.newest)
    while True:
        try:
            chosen = pick(series, planner)
            settled = settle(chosen, planner) if chosen else None
        except prompts.WentBack:
            continue
        except FasttuneError as problem:  # of one choice; another may do
            show_findings(problem.findings)
            continue
        if settled:
            say(_("the same without questions: `{command}`", command=settled.command))
            return settled


def show_advice(run: Run) -> None:
    """Say the verdict on a run, and what to type next where something is to be mended."""
    advice = advisor.of_run(run)
    if advice is not None:
        for text in (*([advice.verdict] if advice.verdict else []), *advisor.next_lines(advice)):
            say(text)


def read_series(request: RunRequest, planner: Planner) -> Series | None:
    """The series of a request's recipe; None where it has no runs. Raises UsageError for a recipe that is wrong."""
    recipe = planner.recipe(request)
    earlier = store.list_runs(request.root, recipe.name)
    named = recipe.continue_.parent
    current = store.current(request.root, recipe.name) if named == "latest" else store.find(request.root, named)
    parent = current if current and current.status == "finished" else None
    return Series(request, recipe, earlier, parent) if earlier else None


def pick(series: Series, planner: Planner) -> RunRequest | None:
    """One round of the menu: the request that was chosen, None where the person went back."""
    request = series.request
    match prompts.choose(_("What do you want to do?"), first_choices(series)):
        case "resume":
            return resuming(series, planner)
        case "continue":
            return continuing(series, planner)
        case "new":
            return replace(request, on_existing="new")
        case "overwrite":
            return overwriting(series)
        case "skip":
            return replace(request, on_existing="skip")
    raise KeyboardInterrupt


def first_choices(series: Series) -> dict[str, str]:
    """What can be done, the likeliest choice first."""
    choices = {}
    if unfinished(series.request.root, series.recipe.name):
        is_trained = series.newest.status == "finished"
        why = _("it was not exported or probed") if is_trained else _("it was stopped before its end")
        choices["resume"] = _("▶️ resume {run}: {why}", run=series.newest.id, why=why)
    if series.parent:
        choices["continue"] = _("🔄 continue training: longer, with other parameters, or with new samples")
    choices["new"] = _("🆕 new run, keep the old ones")
    if any(run.status != "running" for run in series.earlier):
        choices["overwrite"] = _("🗑️ overwrite a run")
    if series.parent:
        choices["skip"] = _("⏭️ skip training, show the run that is there")
    return choices | {CANCEL: _("❌ cancel")}


def resuming(series: Series, planner: Planner) -> RunRequest:
    """The request that resumes the stopped run: this recipe with the overrides the run began with; where the recipe has
    changed since, the run's own copy of it."""
    run, request = series.newest, replace(series.request, on_existing="resume")
    given = dict(began_with(run))
    strategy = given.pop("strategy", None)
    again = replace(request, strategy=strategy, overrides=laid_over(request.overrides, given))
    try:
        run_to_resume(request.root, planner.plan(again), "resume")
    except UsageError:
        return replace(again, recipe=run.recipe)
    return again


def overwriting(series: Series) -> RunRequest | None:
    """The request that overwrites a run, whose id is typed in full; None where nothing was typed."""
    ids = {run.id: run.id for run in reversed(series.earlier) if run.status != "running"}
    run_to_delete = next(iter(ids)) if len(ids) == 1 else prompts.choose(_("Which one?"), ids | {BACK: _("back")})
    if run_to_delete == BACK:
        return None
    say(
        _(
            "{folder} will be removed with its checkpoints, adapter and GGUF files once the new run is complete",
            folder=series.request.root / run_to_delete,
        )
    )
    typed = prompts.text(
        _("Type {run} to remove it, or nothing to go back:", run=run_to_delete),
        "",
        lambda entered: None if entered in ("", run_to_delete) else _("that is not {run}", run=run_to_delete),
    )
    return replace(series.request, overwrite=run_to_delete) if typed else None


def laid_over(overrides: Iterable[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The overrides with those of the settings' keys replaced by the settings."""
    kept = [override for override in overrides if override.partition("=")[0].strip() not in settings]
    return (*kept, *(f"{key}={typed_value(value)}" for key, value in settings.items()))


def settle(request: RunRequest, planner: Planner) -> RunRequest | None:
    """Show the plan of a request; the request to carry out, None where the person went back or it can't be planned."""
    if request.on_existing == "skip":
        return request
    try:
        plan = planner.plan(request)
        resume = run_to_resume(request.root, plan, "new" if request.overwrite else request.on_existing)
    except FasttuneError as problem:
        show_findings(problem.findings)
        return allow_overfit(request, problem, planner)
    show_findings(plan.findings)
    for line in resume_brief(resume, plan) if resume else brief(plan):
        say(f"  {line}")
    return request if prompts.choose(_("Start?"), {"start": _("yes"), BACK: _("back")}) == "start" else None


def allow_overfit(request: RunRequest, problem: FasttuneError, planner: Planner) -> RunRequest | None:
    """The request with --allow-overfit, where too many epochs are its only problem and the person agrees to them."""
    if {finding.code for finding in problem.findings} != {"too-many-epochs"}:
        return None
    if not prompts.agree(_("Train that many epochs anyway?")):
        return None
    return settle(replace(request, allow_overfit=True), planner)


def brief(plan: Plan) -> list[str]:
    """A plan in a few lines: its start, steps, epochs and samples, and what differs from the parent."""
    parent, step = plan.start.parent, plan.start.step
    lines = [
        started_from(plan),
        _(
            "{steps}, up to step {total}: {epochs} of {samples}, {val} held out",
            steps=ngettext("{n} step", "{n} steps", plan.total_steps - step),
            total=plan.total_steps,
            epochs=words.epochs_word(plan.epochs),
            samples=ngettext("{n} sample", "{n} samples", len(plan.dataset.train)),
            val=len(plan.dataset.held_out),
        ),
    ]
    if parent is not None:
        lines.append(words.changed_line(summary.changes(documents.read_plan(parent), plan.document())))
    return lines


def started_from(plan: Plan) -> str:
    """The strategy and where the weights come from."""
    strategy, parent = plan.recipe.strategy, plan.start.parent.id if plan.start.parent else ""
    match plan.start.kind:
        case "checkpoint":
            return _(
                "{strategy}: continues from step {step} of {run}", strategy=strategy, step=plan.start.step, run=parent
            )
        case "adapter":
            return _("{strategy}: starts from the adapter of {run}", strategy=strategy, run=parent)
        case "base":
            return _("{strategy}: starts from the base {base}", strategy=strategy, base=plan.recipe.model.base)


def resume_brief(run: Run, plan: Plan) -> list[str]:
    """Where a stopped run resumes."""
    if run.status == "finished":
        return [_("{run}: training is complete; exporting", run=run.id)]
    checkpoint, flaws = checkpoints.newest_whole_checkpoint(run)
    step = checkpoints.checkpoint_step(checkpoint) if checkpoint else plan.start.step
    return [*flaws, _("{run} resumes at step {step} of {total}", run=run.id, step=step, total=plan.total_steps)]


# The ways to continue ------------------------------------------------------------------------------------------------


def continuing(series: Series, planner: Planner) -> RunRequest | None:
    """Ask which strategy, and its questions; None where the person went back."""
    assert series.parent is not None  # else `continue` is not offered
    parent = questions.read_parent(series.parent)
    say(_("continuing {state}", state=runs_tree.state_line(parent.figures)))
    advice = advisor.of_run(series.parent)
    # Where another command helps, such as `fasttune pick`, and where all is well, other parameters are what is left.
    advised = advice.strategy if advice and advice.strategy in ways() else "retune"
    other_samples, samples = samples_of_now(series, series.parent, planner)
    if other_samples:
        say(other_samples)
    way = prompts.choose(_("How?"), ways() | {BACK: _("back")}, DATA if other_samples else advised)
    if way == BACK:
        return None
    strategy, settings = (
        ("custom", questions.other_data(parent, series.recipe, samples))
        if way == DATA
        else (way, questions.answers(way, parent, series.recipe))
    )
    overrides = laid_over(series.request.overrides, settings)
    # A stopped run would be resumed by the same command.
    beside: OnExisting | None = None if documents.is_complete(series.newest) else "new"
    return replace(series.request, strategy=strategy, overrides=overrides, on_existing=beside)


def samples_of_now(series: Series, parent: Run, planner: Planner) -> tuple[str, int]:
    """What has become of the parent's samples, "" where they are the same; and how many there are to train on now."""
    asked = replace(series.request, strategy="incremental")
    recipe = parents.inherit(planner.recipe(asked), asked.root, "new")
    dataset = planner.dataset(recipe)
    return samples_in_words(parent, recipe, dataset), len(dataset.train)


def ways() -> dict[str, str]:
    """The four strategies and the training with other samples, with what each is for."""
    return {
        "incremental": _("📈 incremental: more epochs; answers fit but are short or shallow"),
        "retune": _("⚙️ retune: from the base with other parameters; quality is not enough"),
        "augment": _("📊 augment: the epochs that few samples need, no new ones; answers out of character"),
        "custom": _("🔧 custom: you choose start, epochs, learning rate and LoRA rank"),
        DATA: _("➕ new or changed samples: trains the adapter further on them, with a new optimizer"),
    }
