"""What `fasttune run` does, in one place: request -> plan -> train -> export -> probe.

A `RunRequest` is the command line as it is typed. A `Planner` makes plans of requests; it reads each recipe file and
each data set once, however many requests are planned (the menu plans several before one is carried out). `run` carries
a request out; it imports torch and Unsloth once the plan is made and what it needs is there, so that a mistake in a
recipe, a base that is not there and a full disk are reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.analysis import plan_advice
from fasttune.command import OnExisting, command_line, run_arguments
from fasttune.console import FasttuneError, Finding, UsageError, _, findings_of, say, show_findings, usage_error
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.data.fact_sheet import read_fact_sheet
from fasttune.files import require_writable
from fasttune.planning import acceptance, advice, parents
from fasttune.planning.resume import other_prompt, require_same, run_to_resume
from fasttune.planning.strategy import Plan
from fasttune.recipe.load import RecipeFile, read_recipe_file, resolve
from fasttune.recipe.schema import DataRecipe, Recipe
from fasttune.runs import checkpoints, store
from fasttune.runs.store import Run

if TYPE_CHECKING:
    from fasttune.export import Artifact
    from fasttune.export.ollama_import import OllamaImport
    from fasttune.runs.documents import Probe
    from fasttune.training.train import RunRecord
    from fasttune.training.watch import Watch


@dataclass(frozen=True)
class RunRequest:
    """The arguments of a `fasttune run`: `overrides` are those of --set, `root` is the runs folder of --runs."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    root: Path = Path("runs")
    strategy: str | None = None
    on_existing: OnExisting | None = None
    overwrite: str | None = None
    allow_overfit: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """All overrides of the recipe, the strategy included."""
        return (*self.overrides, f"strategy={self.strategy}") if self.strategy else self.overrides

    @property
    def arguments(self) -> list[str]:
        """The command line after `fasttune`."""
        return run_arguments(
            self.recipe,
            self.root,
            self.overrides,
            strategy=self.strategy,
            on_existing=self.on_existing,
            overwrite=self.overwrite,
            allow_overfit=self.allow_overfit,
        )

    @property
    def command(self) -> str:
        """The request as it is typed."""
        return command_line(self.arguments)

    @property
    def resuming(self) -> RunRequest:
        """The request that resumes the run which this one has begun: neither a new run nor one instead of another."""
        return replace(self, on_existing="resume", overwrite=None)


@dataclass(frozen=True)
class RunResult:
    """What a `fasttune run` has made. Where training was stopped, `record.finished` is false and the rest is empty."""

    record: RunRecord
    artifacts: list[Artifact]
    probes: tuple[Probe, ...]
    ollama: OllamaImport | None = None


class Planner:
    """Plans of one command's requests. Each recipe file and each data set is read once."""

    def __init__(self) -> None:
        self.files: dict[Path, RecipeFile] = {}
        self.datasets: dict[tuple[DataRecipe, int], Dataset] = {}

    def recipe(self, request: RunRequest) -> Recipe:
        """The request's recipe with its overrides, nothing inherited. Raises UsageError for a recipe that is wrong."""
        if request.recipe not in self.files:
            self.files[request.recipe] = read_recipe_file(request.recipe)
        return resolve(self.files[request.recipe], request.changes)

    def dataset(self, recipe: Recipe) -> Dataset:
        """The recipe's samples. Raises FasttuneError with every finding where one of them is an error."""
        key = (recipe.data, recipe.train.seed)
        if key not in self.datasets:
            self.datasets[key] = load_dataset(*key)
        return self.datasets[key]

    def plan(self, request: RunRequest) -> Plan:
        """The plan of a request, with what follows from the earlier runs of its series, and advice.

        Raises FasttuneError where recipe, data and earlier runs contradict each other, and for a wrong fact sheet.
        """
        recipe = self.recipe(request)
        if recipe.facts.file:
            read_fact_sheet(Path(recipe.facts.file))  # a mistake in it is told before the training, not after it
        on_existing = what_to_do(request, recipe.name)
        plan = acceptance.decided(
            recipe, request.root, self.dataset, on_existing=on_existing, allow_overfit=request.allow_overfit
        )
        found = [*advice.advise(plan), *plan_advice.advise(plan, request.root)]
        return replace(plan, findings=(*plan.findings, *found))


RESUMABLE = ("disk-full", "sample-too-large", "rank-ended")  # errors of the machine: the same training may go well


def resumes(request: RunRequest, planner: Planner, problem: FasttuneError) -> bool:
    """Whether the training that a request has begun can be resumed after this error."""
    if not {finding.code for finding in problem.findings} & set(RESUMABLE):
        return False
    stopped = parents.unfinished(request.root, planner.recipe(request).name)
    return stopped is not None and bool(checkpoints.list_checkpoints(stopped))


def trained_by(request: RunRequest, plan: Plan) -> tuple[RunRequest, Run | None]:
    """The request that trains what was planned, also where the series has runs and nobody is asked about them; and the
    run that it resumes."""
    try:
        return request, run_to_resume(request.root, plan, request.on_existing)
    except UsageError:
        return replace(request, on_existing="new"), None


def foreseen(plan: Plan, base: Path | None, root: Path, resume: Run | None) -> list[Finding]:
    """What training and export will warn of, asked before they begin; `base` is the base's local folder, None where it
    is not on this machine yet. Raises FasttuneError with every finding where one of them would stop them."""
    from fasttune.export.before_training import check_before_training
    from fasttune.training import provenance
    from fasttune.training.plan_check import length_beyond_base, questions_beyond_length
    from fasttune.training.space import space_for_run

    if resume is not None and base is not None:
        provenance.require_same_base(resume, base)  # also where only the files are made
    return findings_of(
        lambda: runs_folder(root / plan.recipe.name),
        lambda: space_for_run(plan, base, root, resume),
        lambda: length_beyond_base(plan.recipe, base),
        lambda: questions_beyond_length(plan, base),
        lambda: other_prompt(resume, plan),
        lambda: check_before_training(plan.recipe, plan.served_system, base, root, resume),
    )


def located(plan: Plan, root: Path) -> Path:
    """The base's local folder; it is downloaded where it is not on this machine, once it is known that the run can be
    written. Raises FasttuneError as `hub.locate` does, and where there is no space for it."""
    from fasttune.training import hub
    from fasttune.training.space import space_for_download

    if hub.find_offline(plan.recipe.model) is None:
        findings_of(lambda: runs_folder(root / plan.recipe.name), lambda: space_for_download(plan.recipe.model))
    return hub.locate(plan.recipe.model)


def runs_folder(folder: Path) -> list[Finding]:
    """Raises FasttuneError where a run can't be written below this folder: found out here, and not once a model is
    loaded."""
    require_writable(folder)
    return []


def resumed_instead_of_skipped(request: RunRequest, planner: Planner) -> RunRequest:
    """The request; where it skips training and there is nothing to show yet, one that resumes what was begun: so that
    a command which may be repeated, as `make quickstart` is, makes a run complete and then shows it."""
    if request.on_existing != "skip":
        return request
    series = planner.recipe(request).name
    used, begun = store.current(request.root, series), parents.unfinished(request.root, series)
    has_result = used is not None and used.status == "finished" and used != begun
    return request.resuming if begun and not has_result else request


def what_to_do(request: RunRequest, series: str) -> OnExisting | None:
    """What --on-existing says; with --overwrite a new run, or the newest where the same command has begun it before."""
    if not request.overwrite:
        return request.on_existing
    newest = next(reversed(store.list_runs(request.root, series)), None)
    is_begun = newest and (newest.status == "running" or parents.unfinished(request.root, series))
    old = store.replaced(newest) if newest and is_begun else None
    return "resume" if old and old == store.find_below(request.root, request.overwrite) else "new"


def run_to_overwrite(request: RunRequest, plan: Plan) -> Run | None:
    """The run that --overwrite names, None without it.

    Raises UsageError for anything but the id of a run of the same series, and for the run that this one continues from.
    """
    if not request.overwrite:
        return None
    run = store.find_below(request.root, request.overwrite)
    if run is None:
        raise store.unknown_run(request.root, request.overwrite)
    if "/" not in request.overwrite.strip("/") or run.series != plan.recipe.name:
        what = _("{name} is not the id of a run of {series}", name=request.overwrite, series=plan.recipe.name)
        known = ", ".join(one.id for one in store.list_runs(request.root, plan.recipe.name)) or _("none yet")
        raise usage_error("not-a-run-id", what, where="--overwrite", fix=_("its runs are {known}", known=known))
    if plan.start.parent and run.folder.resolve() == plan.start.parent.folder.resolve():
        what = _("{run} is what this run continues from", run=run.id)
        fix = _('keep it, or start over: strategy = "fresh"')
        raise usage_error("overwrites-parent", what, where="--overwrite", fix=fix)
    store.require_unused(run)
    return run


def run(request: RunRequest, planner: Planner, *, begun: Run | None = None, watch: Watch | None = None) -> RunResult:
    """Train what the request asks for, export it and answer the probe questions; what is done already is not repeated.

    `begun` is the run that is resumed whatever the series has besides it, else `run_to_resume` decides; `watch` is told
    of the training. Raises FasttuneError for what the user can mend, before training where that is possible: plan, base
    and export settings are checked first.
    """
    plan = planner.plan(request)
    if watch:  # and has shown what is worth saying of the plan
        plan = replace(plan, findings=(), dataset=replace(plan.dataset, findings=()))
    run_to_delete = run_to_overwrite(request, plan)
    decided = what_to_do(request, plan.recipe.name)
    resume = require_same(begun, plan) if begun else run_to_resume(request.root, plan, decided)

    from fasttune.training.progress import PhaseTimer

    base, export_recipe = located(plan, request.root), plan.recipe.export
    show_findings(foreseen(plan, base, request.root, resume))
    phases = PhaseTimer()
    with phases("import", _("loading torch and Unsloth")):
        from fasttune.analysis import probe
        from fasttune.export import export_run
        from fasttune.export.ollama_import import import_after_training
        from fasttune.training import train

    is_trained = resume is not None and resume.status == "finished"
    record = (
        train.load_record(resume)
        if resume and is_trained
        else train.train(plan, base, request.root, resume, phases, run_to_delete, watch)
    )
    if not record.finished:
        return RunResult(record, [], ())
    with store.exclusive(record.run):
        artifacts = export_run(record.run, base, export_recipe, say)
        probes = probe.probe(record.run, base, artifacts, plan.recipe.probe.max_new_tokens, phases)
        imported = None
        if export_recipe.ollama and artifacts:
            imported = import_after_training(record.run, base, artifacts, export_recipe, say)
    remove_replaced(record.run)
    return RunResult(record, artifacts, probes, imported)


def remove_replaced(run: Run) -> None:
    """Remove the run that --overwrite named, now that the one in its place is complete; say so, or why it stays."""
    try:
        old = store.remove_replaced(run)
    except FasttuneError as problem:
        show_findings([replace(finding, level="warning") for finding in problem.findings])
        return
    if old:
        say(_("removed {old}; {run} is in its place", old=old.id, run=run.id))
