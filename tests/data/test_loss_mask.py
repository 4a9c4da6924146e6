"""What a file excludes from training: followed where it can be, and otherwise refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import pair, refusal, write

from fasttune.data.dataset import fingerprint, read_samples
from fasttune.data.loss_mask import check_record, learned
from fasttune.data.messages import Notes


def masked(**keys: Any) -> dict[str, Any]:
    """A conversation of two answers, the first with these keys."""
    contents = ("q", "bad", "again", "good")
    messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return {"messages": [messages[0], messages[1] | keys, *messages[2:]]}


@pytest.mark.parametrize(
    ("keys", "learns"),
    [
        ({"weight": 0}, False), ({"weight": 0.0}, False), ({"train": False}, False), ({"training": False}, False),
        ({"loss": False}, False), ({"loss": 0}, False), ({"loss_weight": 0.0}, False),
        ({"weight": 1, "train": False}, False), ({"weight": 1}, True), ({"train": True}, True),
        ({"loss": None}, True), ({"loss_scale": 1.0}, True), ({"train_detail": []}, True), ({}, True),
    ],
)  # fmt: skip
def test_a_message_is_learned_or_not(keys: dict[str, Any], learns: bool, tmp_path: Path) -> None:
    reading = read_samples(write(tmp_path / "d.jsonl", masked(**keys)))
    assert [message.learn for message in reading.samples[0].messages] == [True, learns, True, True]
    assert not [finding for finding in reading.findings if finding.code != "ignored-keys"]


def test_all_parts_excluded_are_the_message_excluded() -> None:
    text = {"type": "text", "text": "a"}
    notes = Notes()
    assert not learned("m", {}, [text | {"weight": 0}, text | {"train": False}], notes) and not notes.findings
    assert learned("m", {}, [text, text], notes) and not notes.findings
    learned("m", {}, [text | {"weight": 0}, text], notes)
    assert [finding.code for finding in notes.findings] == ["message-weight"]


@pytest.mark.parametrize("value", [0.5, "0", 2, -1, [0], "false"])
def test_half_a_weight_is_refused(value: Any, tmp_path: Path) -> None:
    found = refusal(write(tmp_path / "d.jsonl", masked(weight=value)))
    assert [finding.code for finding in found] == ["message-weight"] and found[0].where.endswith("d.jsonl:1")


@pytest.mark.parametrize(
    ("record", "codes"),
    [
        ({"label": False}, ["preference-data"]), ({"label": "False"}, ["preference-data"]),
        ({"kto_tag": 0}, ["preference-data"]), ({"label": True}, []), ({"label": None}, []), ({"label": "harbour"}, []),
        ({"weight": 0}, ["message-weight"]), ({"sample_weight": 0.0}, ["message-weight"]),
        ({"train": False}, ["message-weight"]), ({"weight": 2}, ["message-weight"]), ({"weight": 1}, []),
        ({"loss": 1.27}, []), ({"loss": 0.0}, []), ({"loss": False}, ["message-weight"]), ({"training": "set"}, []),
    ],
)  # fmt: skip
def test_a_record_that_is_not_to_be_learned(record: dict[str, Any], codes: list[str]) -> None:
    notes = Notes()
    check_record(pair("q", "a") | record, notes)
    assert [finding.code for finding in notes.findings] == codes


def test_what_is_excluded_counts_in_the_fingerprint(tmp_path: Path) -> None:
    plain = read_samples(write(tmp_path / "a.jsonl", masked())).samples
    other = read_samples(write(tmp_path / "b.jsonl", masked(weight=0))).samples
    assert fingerprint(plain, ()) != fingerprint(other, ())
