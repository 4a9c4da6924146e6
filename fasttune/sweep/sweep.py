"""`fasttune sweep`: several runs of a recipe, chosen from by held-out loss. `sweep` reads from top to bottom.

    --vary … ── vary ──► stages ── one plan a listed value ──► study ── pipeline.run, a trial a run ──► choice ──► Sweep

A stage varies one setting, the others being those of the best trial so far; with `together` one stage varies all. A
trial is an ordinary run of the series without exported files. Where the series has a run that trained, or was to train,
the very same, that one is the trial: it is not trained again, and a stopped one is resumed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune import files, pipeline
from fasttune.command import TRIALS, WITHOUT_FILES, command_line, sweep_arguments
from fasttune.console import FasttuneError, Finding, UsageError, _, ngettext, say, show_findings, usage_error
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning import parents
from fasttune.planning.resume import MAY_DIFFER, same_runs
from fasttune.planning.strategy import Plan
from fasttune.runs import documents, epochs, judgement, store
from fasttune.runs.holding_out import share_to_choose_by
from fasttune.runs.run_files import RunFiles
from fasttune.runs.store import Run
from fasttune.sweep import choice
from fasttune.sweep.study import Outcome, Reporter, Stopped, Study, TrialRecord
from fasttune.sweep.vary import Values, Variation, read_variations

if TYPE_CHECKING:
    from fasttune.training.watch import SharedBase

# Errors that are about a trial's own settings. The others are about data or machine, and end the sweep.
OF_A_SERIES = ("begins-again", "other-strategy-fits", "one-change-at-a-time")  # advice that is of no use here
OF_THE_TRIAL = ("not-finite", "sample-too-large", "nothing-trained")


@dataclass(frozen=True)
class SweepRequest:
    """The arguments of a `fasttune sweep`: `run` are those that it shares with `fasttune run`, `trials` how many values
    of a range are tried, `storage` a SQLAlchemy URL, or "" for a SQLite file beside the series' runs."""

    run: RunRequest
    vary: tuple[str, ...]
    together: bool = False
    trials: int = TRIALS
    storage: str = ""
    prunes: bool = True
    asks_facts: bool = True

    @property
    def command(self) -> str:
        """The request as it is typed."""
        return command_line(
            sweep_arguments(
                self.run.arguments[1:], self.vary, together=self.together, trials=self.trials, storage=self.storage,
                prunes=self.prunes, asks_facts=self.asks_facts,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to: its trials in the order of their stages, numbered through, and the best ones first in
    `finalists`. `page` is where its report belongs, `types` are the files that the recipe exports."""

    series: str
    recipe: Path
    keys: tuple[str, ...]
    trials: tuple[TrialRecord, ...]
    finalists: tuple[TrialRecord, ...]
    page: Path
    types: tuple[str, ...]
    findings: tuple[Finding, ...]


def sweep(request: SweepRequest) -> Sweep:
    """Train every trial that is not trained yet and choose the best.

    Raises FasttuneError for what the user can mend, before any training where that is possible, and Stopped after
    Ctrl-C; either way the same command continues.
    """
    variations = read_variations(request.vary)
    work = Trials(request)
    stages = [variations] if request.together else [(one,) for one in variations]
    findings = work.check(stages)
    trials: list[TrialRecord] = []
    with exclusive(request, work.series):
        for stage in stages:
            best = choice.best(trials)
            trials += work.stage(stage, best.settings if best else {}, first=len(trials) + 1)
    work.drop_base()
    finalists = choice.finalists(trials)
    findings += choice.findings(trials, variations)
    keys = tuple(one.key for one in variations)
    types = work.planner.recipe(request.run).export.gguf
    return Sweep(
        work.series, request.run.recipe, keys, tuple(trials), finalists, work.page(keys), types, tuple(findings)
    )


class Trials:
    """Trains the trials of one sweep in this process: recipe, data set and base are read once for all of them."""

    def __init__(self, request: SweepRequest) -> None:
        self.request, self.planner = request, Planner()
        without_files = (f"{key}={parents.typed_value(value)}" for key, value in WITHOUT_FILES.items())
        overrides = (*request.run.overrides, *without_files)
        self.base_request = replace(request.run, overrides=overrides, on_existing="new")
        self.recipe = self.planner.recipe(self.base_request)
        self.series, self.root = self.recipe.name, request.run.root

    @functools.cached_property
    def base(self) -> SharedBase:
        """The base of all trials, loaded when the first one needs it."""
        from fasttune.training.watch import SharedBase

        return SharedBase()

    def drop_base(self) -> None:
        """Hold no base any longer: whoever asks the best trials loads one."""
        if "base" in vars(self):
            self.base.drop()

    def request_of(self, settings: Mapping[str, str]) -> RunRequest:
        """The run request of a trial."""
        own = [f"{key}={text}" for key, text in settings.items()]
        return replace(self.base_request, overrides=(*self.base_request.overrides, *own))

    # Before the first trial ------------------------------------------------------------------------------------------

    def check(self, stages: Sequence[Sequence[Variation]]) -> list[Finding]:
        """Plan all that is listed, so that every mistake is told before the first training; what is worth saying.

        Raises FasttuneError with every finding where one of them is an error, where nothing is held out, and where the
        trials of a continuation would have different parents.
        """
        self.require_one_process()
        self.require_parent()
        plan = self.planner.plan(self.base_request)
        show_findings([*plan.dataset.findings, *(one for one in plan.findings if one.code not in OF_A_SERIES)])
        held_out = len(plan.dataset.held_out)
        if held_out < judgement.FEW_HELD_OUT:
            raise self.nothing_held_out(held_out, held_out + len(plan.dataset.train))

        listed = [{key: text} for stage in stages for one in stage if isinstance(one, Values)
                  for key, text in ((one.key, text) for text in one.texts)]  # fmt: skip
        if problems := [one for each in listed for one in self.problems(each)]:
            raise UsageError(*dict.fromkeys(problems))
        if held_out >= judgement.ENOUGH_HELD_OUT:
            return []
        what = ngettext("the choice is made by {n} held-out sample", "the choice is made by {n} held-out samples",
                        held_out)  # fmt: skip
        why = _("the loss of so few moves by chance; take small differences for none")
        fix = _("hold out {enough} or more", enough=judgement.ENOUGH_HELD_OUT)
        return [Finding("few-held-out", "warning", f"{self.recipe.path}: data.val", what, why, fix)]

    def problems(self, settings: Mapping[str, str]) -> list[Finding]:
        """What is wrong with the plan of a trial."""
        try:
            self.planner.plan(self.request_of(settings))
        except FasttuneError as problem:
            more = replace(self.request, run=replace(self.request.run, allow_overfit=True))
            fix = _("try fewer epochs, or all the same: `{command}`", command=more.command)
            return [replace(one, fix=fix) if one.code == "too-many-epochs" else one for one in problem.findings]
        return []

    def require_one_process(self) -> None:
        """Raises UsageError below torchrun, where several processes would train each trial."""
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return
        what = _("a sweep trains each trial by one process")
        fix = _("start one sweep for each GPU, with a storage that they share: `--storage URL` (docs/sweep.md)")
        raise usage_error("several-processes", what, fix=fix)

    def require_parent(self) -> None:
        """Raises UsageError for a continuation that does not name its parent: the newest run of the series is another
        one after each trial."""
        if self.recipe.strategy == "fresh" or self.recipe.continue_.parent != "latest":
            return
        used = store.current(self.root, self.series)
        setting = f"continue.parent={used.id}" if used else "strategy=fresh"
        again = replace(self.request, run=replace(self.request.run, overrides=(*self.request.run.overrides, setting)))
        what = _("a sweep of a continuation has to name the run that every trial continues from")
        why = _("after each trial another run is the latest of the series")
        raise usage_error(
            "parent-not-named", what, where=f"{self.recipe.path}: continue.parent", why=why, fix=f"`{again.command}`"
        )

    def nothing_held_out(self, held_out: int, samples: int) -> FasttuneError:
        """The error where no held-out loss can choose, with the command that holds out as many as suit them, or as
        it takes to choose by."""
        share = share_to_choose_by(samples)
        overrides = [one for one in self.request.run.overrides if not one.startswith("data.val=")]
        overrides.append(f"data.val={share:g}")
        again = replace(self.request, run=replace(self.request.run, overrides=tuple(overrides)))
        what = _("nothing is held out, and only held-out samples can choose")
        why = _("the training loss is lowest where samples are learned by heart")
        if held_out:
            what, why = _("one held-out sample can't choose"), _("its loss moves by chance")
        fix = _("name a file as data.val in the recipe, or hold out {share:.0%} of the samples: `{command}`",
                share=share, command=again.command)  # fmt: skip
        return usage_error("nothing-held-out", what, where=f"{self.recipe.path}: data.val", why=why, fix=fix)

    # The trials ------------------------------------------------------------------------------------------------------

    def stage(self, variations: Sequence[Variation], fixed: Mapping[str, str], *, first: int) -> list[TrialRecord]:
        """Train the trials of a stage with the settings that are `fixed` by the stages before; all of them, those of
        other processes included, their numbers beginning with `first`."""
        study = Study(
            self.storage_url(), self.study_name(variations, fixed), variations, self.settings(variations),
            alone=not self.request.storage, prunes=self.request.prunes, seed=self.recipe.train.seed,
            host=platform.node(),
        )  # fmt: skip

        def train(number: int, own: Mapping[str, str], reporter: Reporter) -> Outcome:
            words = ", ".join(f"{key} = {text}" for key, text in own.items())
            say(_("trial {number}: {settings}", number=number + first - 1, settings=words))
            outcome = self.train({**fixed, **own}, reporter)
            say(_("trial {number}: {outcome}", number=number + first - 1, outcome=choice.in_words(outcome)))
            return outcome

        while study.train_next(train) or study.wait_for_others(say_waiting):
            pass
        return [replace(one, number=one.number + first - 1, settings={**fixed, **one.settings}) for one in study.read()]

    def settings(self, variations: Sequence[Variation]) -> list[Mapping[str, str]]:
        """The settings of each trial of a stage: every combination of listed values; none where there is a range."""
        listed = [one for one in variations if isinstance(one, Values)]
        if len(listed) < len(variations):
            return [{}] * self.request.trials
        texts = itertools.product(*(one.texts for one in listed))
        return [dict(zip([one.key for one in listed], each, strict=True)) for each in texts]

    def train(self, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        """Train a trial, or take the run that has trained it. Raises FasttuneError and Stopped as `sweep` does."""
        from fasttune.training.watch import Watch

        request = self.request_of(settings)
        begun = self.run_of(self.planner.plan(request))
        if begun is not None and documents.is_complete(begun):
            reporter.began(begun.id)
            outcome = outcome_of(begun)
            reporter.is_hopeless([(one.epoch, one.eval_loss) for one in epochs.kept_epochs(begun) if one.eval_loss])
            return outcome
        watch = Watch(lambda run: reporter.began(run.id), reporter.is_hopeless, self.base)
        try:
            record = pipeline.run(request, self.planner, begun=begun, watch=watch).record
        except FasttuneError as problem:
            if not {finding.code for finding in problem.findings} & set(OF_THE_TRIAL):
                raise
            show_findings([replace(finding, level="warning") for finding in problem.findings])
            return Outcome(None, None, problem.findings[0].what)
        if record.finished:
            return outcome_of(record.run)
        if reporter.is_pruned:
            return Outcome(None, None)
        raise Stopped

    def run_of(self, plan: Plan) -> Run | None:
        """The run of the series that trains this plan already, or has trained it, on the base that is there now."""
        from fasttune.training import hub, provenance

        base = hub.find_offline(plan.recipe.model)
        for run in same_runs(self.root, plan):
            with contextlib.suppress(FasttuneError):
                if base is not None:
                    provenance.require_same_base(run, base)
                return run
        return None

    # Where it is kept ------------------------------------------------------------------------------------------------

    def storage_url(self) -> str:
        return self.request.storage or f"sqlite:///{folder_of(self.root, self.series).resolve() / 'optuna.sqlite3'}"

    def study_name(self, variations: Sequence[Variation], fixed: Mapping[str, str]) -> str:
        """A name that tells apart what decides a trial, so that the same command finds its trials again and a changed
        recipe begins anew."""
        varied = [one.key for one in variations]
        document = self.planner.plan(self.request_of(fixed)).document()
        decides = {
            one.key: one.value for one in document.settings
            if one.key not in varied and not one.key.startswith(MAY_DIFFER) and not one.source.startswith("default (")
        }  # fmt: skip
        parts = [
            decides,
            document.data_fingerprint,
            document.parent,
            document.start_epoch,
            [str(one) for one in variations],
        ]
        digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        return f"{self.series}/{'+'.join(varied)}/{digest[:8]}"

    def page(self, keys: Sequence[str]) -> Path:
        """Where the report of the sweep belongs."""
        return folder_of(self.root, self.series) / f"{'+'.join(keys)}.html"


def folder_of(root: Path, series: str) -> Path:
    """The folder of what sweeps keep beside the runs of a series."""
    return root / series / "sweeps"


@contextlib.contextmanager
def exclusive(request: SweepRequest, series: str) -> Iterator[None]:
    """Without --storage, let no other process sweep the series; its folder is made.

    Raises FasttuneError where one does, and where a run of the series is being trained.
    """
    folder = folder_of(request.run.root, series)
    folder.mkdir(parents=True, exist_ok=True)
    if request.storage:
        yield
        return
    message = _("another process sweeps {series}; several at once share a storage: `--storage URL`", series=series)
    with files.locked(folder / ".lock", message):
        for run in store.list_runs(request.run.root, series):
            if run.status == "running":
                raise parents.is_running(run)
        yield


def say_waiting(trials: int) -> None:
    """Say that other processes are still training."""
    say(ngettext("waiting for {n} trial of another process", "waiting for {n} trials of other processes", trials))


def outcome_of(run: Run) -> Outcome:
    """What a complete run came to: the best of its epochs, else the adapter that it ended with."""
    best = epochs.best_epoch(epochs.kept_epochs(run))
    if best is not None:
        return Outcome(best.eval_loss, best.epoch)
    loss, plan = RunFiles(run).adapter_eval_loss, documents.read_plan(run)
    if loss is None:
        return Outcome(None, None, _("it has no held-out loss"))
    return Outcome(loss, epochs.epoch_of(parents.trained_steps(run), plan.steps_per_epoch))
