"""history.jsonl as the board follows it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fasttune.web.history_tail import FIELDS, MOST_POINTS, Place, Point, latest, news, thinned


def write(path: Path, steps: range, **figures: float) -> None:
    with open(path, "a", encoding="utf-8") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "epoch": step / 10, "loss": 1.0, **figures}) + "\n")


def steps(points: tuple[Point, ...]) -> list[float | None]:
    return [point[0] for point in points]


def test_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert news(path, Place()).points == ()
    write(path, range(1, 4))
    first = news(path, Place())
    assert steps(first.points) == [1, 2, 3] and not first.more
    write(path, range(4, 6))
    second = news(path, first.place)
    assert steps(second.points) == [4, 5] and news(path, second.place).points == ()


def test_pieces_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(1, 501))
    place, found, pieces = Place(), list[float | None](), 0
    while (piece := news(path, place, most_bytes=1000)).points:
        found, place, pieces = found + steps(piece.points), piece.place, pieces + 1
        assert piece.more is (found[-1] != 500)
    assert found == list(range(1, 501)) and pieces > 20


def test_a_line_longer_than_a_piece_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 1.0, "more": "x" * 5000}) + "\n", encoding="utf-8")
    assert steps(news(path, Place(), most_bytes=1000).points) == [1]


def test_a_torn_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(1, 2))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    first = news(path, Place())
    assert steps(first.points) == [1] and not first.more
    assert steps(thinned(path).points) == [1] and thinned(path).place == first.place
    assert steps(latest(path)) == [1]
    with open(path, "a", encoding="utf-8") as file:
        file.write('ss": 0.5}\n')
    assert steps(news(path, first.place).points) == [2]


def test_a_file_that_was_written_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, other = tmp_path / "history.jsonl", tmp_path / "other"
    write(path, range(1, 10))
    place = news(path, Place()).place
    write(other, range(1, 3))
    other.replace(path)
    again = news(path, place)
    assert again.is_new_file and steps(again.points) == [1, 2]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"loss": 1}', '{"step": "3"}', "\x00\xff", '{"step": null}'])
def test_a_damaged_line_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(1, 2))
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    write(path, range(3, 4))
    assert steps(news(path, Place()).points) == [1, 3]


def test_a_figure_that_is_no_finite_number_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(1, 2), grad_norm=float("nan"))
    (point,) = news(path, Place()).points
    assert point[FIELDS.index("grad_norm")] is None


@pytest.mark.parametrize("text", ["", "x", "1", "1-", "-1", "1-2-3", "²-1", "9" * 60 + "-1", "../1-2"])
def test_a_place_that_makes_no_sense_is_the_beginning(text: str) -> None:
    assert Place.read(text) == Place() and Place.read(str(Place(3, 4))) == Place(3, 4)


def test_a_long_history_is_thinned_with_every_evaluation_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for step in range(1, 100_001):
            line = {"step": step, "epoch": step / 1000, "loss": 1 / step, "mean_token_accuracy": 0.5, "grad_norm": 1.0,
                    "learning_rate": 1e-4, "tokens_per_second": 1000.0, "step_seconds": 0.5}  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if step % 1000 == 0:
                file.write(json.dumps({"step": step, "eval_loss": 2.0}) + "\n")
    began = time.process_time()
    found = thinned(path)
    assert time.process_time() - began < 1.0
    assert MOST_POINTS / 2 < len(found.points) < 2 * MOST_POINTS
    assert sum(point[FIELDS.index("eval_loss")] is not None for point in found.points) == 100
    assert found.points[0][0] == 1 and found.points[-1][0] == 100_000
    assert found.place == Place(path.stat().st_ino, path.stat().st_size)
