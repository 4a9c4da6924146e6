"""The trials of a sweep in a storage that several processes and machines may share: all contact with Optuna.

A process puts the next trial that nobody has taken into the storage and takes one that waits there: with its values
where those are listed, without where TPE chooses them from what came of the trials before. The storage gives no trial
to two processes. One whose process ended before it was over waits again, under the same number and before all new ones,
and its run is resumed by whoever takes it.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from fasttune.console import FasttuneError, _, error
from fasttune.sweep.vary import Range, Variation

State = Literal["planned", "running", "finished", "pruned", "failed"]
NUMBER, REPLACES = "trial", "replaces"  # attributes of a trial: its number in the sweep; the one that it stands for
RUN, EPOCH, WHY, SETTINGS, HOST = "run", "epoch", "why", "settings", "host"
STATES: dict[TrialState, State] = {
    TrialState.WAITING: "planned", TrialState.RUNNING: "running", TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
}  # fmt: skip
# Pruned is by the median of the finished trials at the same epoch: from so many of them on, after so many epochs, since
# a low learning rate begins slowly.
FINISHED_FIRST, EPOCHS_FIRST = 3, 2
RANDOM_FIRST = 4  # trials whose values TPE draws by chance
MILLI = 1000  # Optuna counts steps in whole numbers; ours are thousandths of an epoch
# Processes that share a storage say that they are alive so often, and are taken for dead after so long, in seconds.
HEARTBEAT, GRACE = 30, 300
POLL = 2.0  # seconds between two looks at the trials of other processes


@dataclass(frozen=True)
class Outcome:
    """What training a trial came to: `loss` is the lowest held-out loss of its epochs, reached after `epoch` of them;
    None where it was stopped as hopeless, and `why` says so where it can't be trained."""

    loss: float | None
    epoch: float | None
    why: str = ""


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the storage has it. `settings` is {dotted key: as typed after --set}; `losses` {epochs: held-out
    loss}; `run` the id of its run, "" before it has one, on the machine `host`; `why` says why it failed."""

    number: int
    state: State
    settings: Mapping[str, str]
    run: str = ""
    loss: float | None = None
    epoch: float | None = None
    losses: tuple[tuple[float, float], ...] = ()
    why: str = ""
    host: str = ""


class Reporter:
    """Tells the storage of a trial while it is trained."""

    def __init__(self, trial: Trial, host: str) -> None:
        self.trial, self.host = trial, host
        self.is_pruned = False
        self.reported: set[int] = set()

    def began(self, run: str) -> None:
        """Note the run of the trial."""
        self.trial.set_user_attr(RUN, run)
        self.trial.set_user_attr(HOST, self.host)

    def is_hopeless(self, evaluated: Sequence[tuple[float, float]]) -> bool:
        """Note the (epochs, held-out loss) so far; whether they are so far behind those of the other trials that the
        rest is not worth its time."""
        for epochs, loss in evaluated:
            step = round(epochs * MILLI)
            if step not in self.reported:
                self.reported.add(step)
                self.trial.report(loss, step)
        self.is_pruned = self.trial.should_prune()
        return self.is_pruned


class Stopped(Exception):
    """The person has stopped the training of a trial; whoever takes it next resumes it."""


class Surplus(Exception):
    """Two processes have planned the same trial, and another one has it."""


Train = Callable[[int, Mapping[str, str], Reporter], Outcome]


class Study:
    """The trials that vary the same settings at once, everything else alike.

    `url` is a SQLAlchemy URL, `settings` are those of each trial, none for TPE to choose them; `alone`: no other
    process uses the storage. Raises FasttuneError where it can't be used.
    """

    def __init__(
        self,
        url: str,
        name: str,
        variations: Sequence[Variation],
        settings: Sequence[Mapping[str, str]],
        *,
        alone: bool,
        prunes: bool,
        seed: int,
        host: str,
    ) -> None:
        self.url, self.variations, self.settings, self.alone = url, variations, settings, alone
        self.seed, self.host = seed, host
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner: Any = optuna.pruners.NopPruner()
        if prunes:
            pruner = optuna.pruners.MedianPruner(FINISHED_FIRST, EPOCHS_FIRST * MILLI)
        with self.storage():
            storage = open_storage(url, alone=alone)
            self.study = optuna.create_study(
                storage=storage, study_name=name, pruner=pruner, sampler=sampler(seed), load_if_exists=True
            )

    def train_next(self, train: Train) -> bool:
        """Take a trial and train it; False where none is left.

        Raises FasttuneError where the training can't be done on this machine or the storage can't be used, and Stopped;
        the trial stays planned.
        """
        with self.storage():
            if not self.has_waiting():
                return False
            self.study.optimize(lambda trial: self.objective(trial, train), n_trials=1, catch=(Surplus,))
        return True

    def has_waiting(self) -> bool:
        """Whether a trial waits to be taken; where none does the next one is put there."""
        self.plan_again()
        every = self.trials()
        if any(trial.state == TrialState.WAITING for trial in every):
            return True
        known = {trial.user_attrs[NUMBER] for trial in every}
        number = next((one for one in range(1, len(self.settings) + 1) if one not in known), None)
        if number is not None:
            self.study.enqueue_trial(dict(self.settings[number - 1]), user_attrs={NUMBER: number})
        return number is not None

    def objective(self, trial: Trial, train: Train) -> float:
        """The held-out loss of a trial. Raises what Optuna, or `train_next`, wants to know."""
        number = trial.user_attrs.get(NUMBER)
        if number is None or self.is_surplus(trial.number):
            raise Surplus
        # Seeded by the trial: what TPE chooses depends on what the storage holds, and not on which process asks.
        self.study.sampler = sampler(self.seed + trial.number)
        settings = {one.key: suggested(trial, one) for one in self.variations}
        trial.set_user_attr(SETTINGS, settings)
        reporter = Reporter(trial, self.host)
        outcome = train(number, settings, reporter)
        if outcome.why:
            trial.set_user_attr(WHY, outcome.why)
            raise Surplus  # tried, and done with
        if outcome.loss is None:
            raise optuna.TrialPruned
        trial.set_user_attr(EPOCH, outcome.epoch)
        return outcome.loss

    # What became of them ---------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get(NUMBER)]

    def is_surplus(self, number: int) -> bool:
        """Whether an earlier trial was planned for the same reason: two processes that plan at once."""
        every = {trial.number: (trial.user_attrs[NUMBER], trial.user_attrs.get(REPLACES)) for trial in self.trials()}
        return any(other < number and reason == every[number] for other, reason in every.items())

    def plan_again(self) -> None:
        """Plan those trials again whose process ended before they were over."""
        if self.alone:
            for trial in self.trials():
                if trial.state == TrialState.RUNNING:
                    self.study.tell(trial.number, state=TrialState.FAIL)
        else:
            with quiet():
                optuna.storages.fail_stale_trials(self.study)
        every = self.trials()
        replaced = {trial.user_attrs.get(REPLACES) for trial in every}
        for trial in every:
            is_over = trial.state != TrialState.FAIL or trial.user_attrs.get(WHY) or trial.number in replaced
            if not is_over and not self.is_surplus(trial.number):
                self.study.add_trial(again(trial))

    def wait_for_others(self, say_once: Callable[[int], None]) -> bool:
        """Wait for the trials that other processes train; whether one of them is to be trained here after all.

        `say_once` gets their number before the first wait.
        """
        with self.storage():
            while not self.alone:
                if self.has_waiting():
                    return True
                states = [record.state for record in self.read()]
                if "running" not in states:
                    return False
                say_once(states.count("running"))
                time.sleep(POLL)
        return False

    def read(self) -> list[TrialRecord]:
        """The trials in the order of their numbers, each as it stands now."""
        newest: dict[int, FrozenTrial] = {}
        with self.storage():
            for trial in self.trials():
                if not self.is_surplus(trial.number):
                    newest[trial.user_attrs[NUMBER]] = trial
        return [
            record_of(number, newest[number]) if number in newest else TrialRecord(number, "planned", settings)
            for number, settings in enumerate(self.settings, 1)
        ]

    @contextlib.contextmanager
    def storage(self) -> Iterator[None]:
        """Turn what a storage raises in the block into a FasttuneError that names it, without its password."""
        try:
            with quiet():
                yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as problem:
            raise unusable(self.url, problem) from None


def record_of(number: int, trial: FrozenTrial) -> TrialRecord:
    """A trial of the storage in our words; one that ended before it was over, and is not planned again yet, is
    planned."""
    known = trial.user_attrs
    state = STATES[trial.state]
    if state == "failed" and not known.get(WHY):
        state = "planned"
    losses = tuple((step / MILLI, loss) for step, loss in sorted(trial.intermediate_values.items()))
    settings = known.get(SETTINGS) or trial.system_attrs.get("fixed_params", {})
    loss, epoch = (trial.value, known.get(EPOCH)) if state == "finished" else (None, None)
    return TrialRecord(
        number, state, settings, known.get(RUN, ""), loss, epoch, losses, known.get(WHY, ""), known.get(HOST, "")
    )


def again(trial: FrozenTrial) -> FrozenTrial:
    """The same trial, to be taken by anybody; what TPE has chosen for it stays."""
    kept = {key: value for key, value in trial.user_attrs.items() if key != REPLACES}
    fixed = trial.params or trial.system_attrs.get("fixed_params", {})
    return create_trial(
        state=TrialState.WAITING,
        user_attrs={**kept, REPLACES: trial.number},
        system_attrs={"fixed_params": fixed},
    )


def suggested(trial: Trial, variation: Variation) -> str:
    """The value of a setting in a trial, as it is typed after --set KEY=."""
    if not isinstance(variation, Range):
        return str(trial.suggest_categorical(variation.key, variation.texts))
    if variation.is_whole:
        whole = trial.suggest_int(variation.key, round(variation.low), round(variation.high), log=variation.is_log)
        return variation.text(whole)
    return variation.text(trial.suggest_float(variation.key, variation.low, variation.high, log=variation.is_log))


# The storage --------------------------------------------------------------------------------------------------------


def open_storage(url: str, *, alone: bool) -> Any:
    """Optuna's storage at a URL; its tables are made where they are missing. Raises FasttuneError where the driver of
    its database is missing."""
    interval, grace = (None, None) if alone else (HEARTBEAT, GRACE)
    try:
        return optuna.storages.RDBStorage(url, heartbeat_interval=interval, grace_period=grace)
    except ImportError as problem:
        raise unusable(url, problem) from None


def sampler(seed: int) -> Any:
    """TPE, which treats each setting by itself, so that it is asked where a value is needed and not before."""
    return optuna.samplers.TPESampler(n_startup_trials=RANDOM_FIRST, multivariate=False, seed=seed % 2**32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings: Optuna calls heartbeats an experiment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def unusable(url: str, problem: Exception) -> FasttuneError:
    """The error for a storage that can't be used."""
    reason = str(problem.__cause__ or problem).strip().splitlines()[0]
    if isinstance(problem, ImportError):
        fix = _("install the driver into fasttune's environment; PostgreSQL's is psycopg[binary]")
    elif "disk is full" in reason or "I/O error" in reason:
        fix = _("free some space; the same command continues the sweep")
    else:
        fix = _(
            "check that the server runs and the URL is right, as in postgresql+psycopg://user:password@host/database"
        )
    what = _("the storage of the trials can't be used: {reason}", reason=reason)
    return error("storage-unusable", what, where=without_password(url), fix=fix)


def without_password(url: str) -> str:
    """A database's URL as it may be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "--storage"
