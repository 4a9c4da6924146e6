"""The trials in a storage: each is trained once, whatever ends its process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fasttune.console import FasttuneError
from fasttune.sweep.study import Outcome, Reporter, Stopped, Study, Train, without_password
from fasttune.sweep.vary import Range, Values, Variation

RANKS = Values("lora.r", ("8", "16", "32", "64"))
EMPTY = Path()  # set by `tables`
LISTED = [{RANKS.key: text} for text in RANKS.texts]


class Killed(BaseException):
    """What Optuna does not take for an end of a trial: to the storage it is a process that was killed."""


@pytest.fixture(scope="module", autouse=True)
def tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A storage without trials, made once: its tables take longer than all that a test does with them."""
    global EMPTY
    EMPTY = tmp_path_factory.mktemp("tables") / "trials.sqlite3"
    Study(f"sqlite:///{EMPTY}", "nothing", [RANKS], LISTED, alone=True, prunes=True, seed=1, host="here")


def study(
    folder: Path,
    settings: Sequence[Mapping[str, str]] = LISTED,
    variation: Variation = RANKS,
    *,
    alone: bool = True,
    prunes: bool = True,
) -> Study:
    file = folder / "trials.sqlite3"
    if not file.exists():
        shutil.copy(EMPTY, file)
    url = f"sqlite:///{file}"
    return Study(url, "cat/1", [variation], settings, alone=alone, prunes=prunes, seed=1, host="here")


def always(loss: float = 2.0) -> Train:
    def train(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        reporter.began(f"cat/{number:03d}-fresh")
        return Outcome(loss + number, 1.0)

    return train


def train_all(one: Study, train: Train) -> list[int]:
    """The numbers of the trials that were trained."""
    trained: list[int] = []

    def noted(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        trained.append(number)
        return train(number, settings, reporter)

    while one.train_next(noted):
        pass
    return trained


def test_every_listed_value_is_trained_once(tmp_path: Path) -> None:
    one = study(tmp_path)
    assert [record.state for record in one.read()] == ["planned"] * 4
    assert train_all(one, always()) == [1, 2, 3, 4]
    assert [(record.settings, record.loss, record.run) for record in one.read()][:2] == [
        ({"lora.r": "8"}, 3.0, "cat/001-fresh"), ({"lora.r": "16"}, 4.0, "cat/002-fresh"),
    ]  # fmt: skip
    assert train_all(study(tmp_path), always()) == []  # the same command again


@pytest.mark.parametrize("end", [Killed, Stopped, KeyboardInterrupt, FasttuneError])
def test_a_trial_whose_process_ended_is_planned_again_with_its_run(tmp_path: Path, end: type[BaseException]) -> None:
    def ended(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        reporter.began(f"cat/{number:03d}-fresh")
        reporter.is_hopeless([(1.0, 5.0)])
        if number == 2:
            raise end
        return Outcome(3.0, 1.0)

    one = study(tmp_path)
    with pytest.raises(end):
        train_all(one, ended)
    later = study(tmp_path)
    assert train_all(later, always()) == [2, 3, 4]  # the one that was begun comes first
    assert [(record.number, record.state, record.run) for record in later.read()] == [
        (number, "finished", f"cat/{number:03d}-fresh") for number in (1, 2, 3, 4)
    ]


def test_two_processes_that_plan_at_once_train_nothing_twice(tmp_path: Path) -> None:
    """Both have looked before the other has planned: the storage holds every trial twice."""
    one, other = study(tmp_path, alone=False), study(tmp_path, alone=False)
    for each in (one, other):
        for number, settings in enumerate(LISTED, 1):
            each.study.enqueue_trial(settings, user_attrs={"trial": number})
    trained: list[int] = []

    def train(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        trained.append(number)
        if number == 1:
            other.train_next(train)  # meanwhile
        return Outcome(3.0, 1.0)

    while one.train_next(train):
        pass
    assert trained == [1, 2, 3, 4]
    assert [record.state for record in one.read()] == ["finished"] * 4


def test_a_trial_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = study(tmp_path, LISTED[:1], alone=False), study(tmp_path, LISTED[:1], alone=False)
    waited: list[int] = []
    monkeypatch.setattr("fasttune.sweep.study.POLL", 0.0)

    def train(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        def over(trials: int) -> None:
            waited.append(trials)
            if len(waited) == 2:
                raise Killed

        assert not other.train_next(train)
        with pytest.raises(Killed):
            other.wait_for_others(over)
        return Outcome(3.0, 1.0)

    assert one.train_next(train)
    assert waited == [1, 1]
    assert not other.wait_for_others(waited.append)


def test_one_that_is_behind_is_pruned_from_the_second_epoch_on(tmp_path: Path) -> None:
    def train(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        losses = [(1.0, 5.0), (2.0, 4.0)] if number < 4 else [(1.0, 9.0)]
        assert not reporter.is_hopeless(losses)
        if number == 4 and reporter.is_hopeless([*losses, (2.0, 4.1)]):
            return Outcome(None, None)
        return Outcome(losses[-1][1], 2.0)

    one = study(tmp_path)
    train_all(one, train)
    last = one.read()[-1]
    assert (last.state, last.losses, last.loss) == ("pruned", ((1.0, 9.0), (2.0, 4.1)), None)
    (tmp_path / "all").mkdir()
    unpruned = study(tmp_path / "all", prunes=False)
    train_all(unpruned, train)
    assert unpruned.read()[-1].state == "finished"


def test_a_trial_that_cannot_be_trained_is_not_tried_again(tmp_path: Path) -> None:
    one = study(tmp_path, LISTED[:2])
    assert train_all(one, lambda number, _settings, _reporter: Outcome(None, None, "diverged")) == [1, 2]
    assert train_all(study(tmp_path, LISTED[:2]), always()) == []
    assert [(record.state, record.why) for record in one.read()] == [("failed", "diverged")] * 2


def test_tpe_draws_by_the_trial_and_not_by_the_process(tmp_path: Path) -> None:
    """Two sweeps choose the same values, one of them in a process a trial; and no two trials have the same."""
    rate = Range("train.learning_rate", 1e-5, 1e-3, is_whole=False)

    def train(number: int, settings: Mapping[str, str], reporter: Reporter) -> Outcome:
        return Outcome(float(settings[rate.key]) * 1000, 1.0)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    one = study(whole, [{}] * 6, rate)
    train_all(one, train)
    while study(parts, [{}] * 6, rate).train_next(train):
        pass
    values = [[record.settings[rate.key] for record in each.read()] for each in (one, study(parts, [{}] * 6, rate))]
    assert values[0] == values[1]
    assert len(set(values[0])) == 6
    assert all(1e-5 <= float(value) <= 1e-3 for value in values[0])


def test_a_storage_that_cannot_be_used_is_named_without_its_password(tmp_path: Path) -> None:
    for url, reason in (
        ("postgresql+psycopg://me:secret@localhost/trials", "psycopg"),
        (f"sqlite:///{tmp_path}/no/such/folder/trials.sqlite3", "unable to open"),
        ("somewhere", "Could not parse"),
    ):
        with pytest.raises(FasttuneError) as refused:
            Study(url, "cat", [RANKS], LISTED, alone=False, prunes=True, seed=1, host="here")
        (finding,) = refused.value.findings
        assert finding.code == "storage-unusable"
        assert reason in finding.what
        assert "secret" not in f"{finding}"
    assert without_password("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
