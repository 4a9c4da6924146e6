"""`fasttune augment`: the shipped files are what it writes, nothing held out is in them, and no other file is touched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from data_files import write

from fasttune.console import UsageError
from fasttune.data import dataset, fact_samples
from fasttune.data.dataset import Sample, read_samples
from fasttune.data.fact_sheet import read_fact_sheet
from fasttune.data.lint import lint
from fasttune.data.measured import ANSWER_LETTERS, Measured
from fasttune.planning.augment import Augmented, AugmentRequest, augment
from fasttune.recipe.load import load_recipe

PERSONAS = ("linzhi", "qin", "nell")
SHEET = """\
[[fact]]
id = "cat"
text = "她的猫叫定影"
questions = ["你的猫叫什么？", "猫咪什么名字？", "怎么叫你家的猫？"]
accept = ["定影"]
ask = ["那只猫的大名是？", "喂猫时你喊它啥？"]
say = ["我家猫叫定影。", "定影，冲照片的药水。"]

[[fact]]
id = "price"
text = "二十块一版"
questions = ["多少钱？", "怎么收费？", "贵不贵？"]
accept = ["二十"]
"""


def system_and(*turns: tuple[str, str], system: str = "你是林栀。") -> dict[str, Any]:
    said = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"messages": [{"role": "system", "content": system}, *said]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a sheet, three training samples and a held-out one, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("facts.toml").write_text(SHEET, encoding="utf-8")
    other = system_and(("在吗", "在。"), system="你是别人。")
    write(Path("train.jsonl"), other, system_and(("你好", "你好。")), system_and(("晚安", "去睡吧。")))
    write(Path("val.jsonl"), system_and(("今天下雨吗", "没下。")))
    Path("mine.toml").write_text(
        'name = "mine"\nmodel.base = "builtin:tiny"\nfacts.file = "facts.toml"\n'
        'data = { train = "train.jsonl", val = "val.jsonl" }\n'
    )
    return tmp_path


def made(source: str = "mine.toml", **options: Any) -> Augmented:
    return augment(AugmentRequest(Path(source), **{"per_fact": 8, **options}))


def records(file: str = "facts-train.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def refusal(source: str = "mine.toml", **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        made(source, **options)
    return refused.value.findings[0].code


# What is shipped ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=PERSONAS)
def persona(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_shipped_file_is_what_the_verb_writes(
    persona: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = REPOSITORY / "data" / persona
    shutil.copytree(shipped, tmp_path / "data" / persona)
    written = tmp_path / "data" / persona / "facts-train.jsonl"
    written.unlink()
    shutil.copy(REPOSITORY / "recipes" / f"{persona}_facts.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = made(f"{persona}_facts.toml", per_fact=None)
    assert found.findings == () and found.is_named and found.has_system
    assert written.read_bytes() == (shipped / "facts-train.jsonl").read_bytes()


def test_a_shipped_sheet_has_several_wordings_of_every_fact(persona: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    facts = read_fact_sheet(Path(load_recipe(f"recipes/{persona}_facts.toml").facts.file)).facts
    assert [fact.id for fact in facts if len(fact.ask) < 3 or len(fact.say) < 2] == []


def test_nothing_shipped_is_measured_or_held_out(persona: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / "data" / persona)
    said = {role: [m.content for one in read_samples("val.jsonl").samples for m in one.messages if m.role == role]
            for role in ("user", "assistant")}  # fmt: skip
    questions = Measured([*said["user"], *read_fact_sheet(Path("facts.toml")).questions])
    answers = Measured(said["assistant"], ANSWER_LETTERS)
    turns = [m for one in read_samples("facts-train.jsonl").samples for m in one.messages]
    assert [m.content for m in turns if m.role == "user" and questions.like(m.content)] == []
    assert [m.content for m in turns if m.role == "assistant" and answers.like(m.content)] == []


def test_the_check_has_nothing_to_say_of_what_is_shipped(persona: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipe = load_recipe(f"recipes/{persona}_facts.toml")
    both, alone = (
        dataset.load_dataset(data, 0) for data in (recipe.data, replace(recipe.data, train=recipe.data.train[:1]))
    )
    found = {(one.code, one.where) for one in lint(both.train, both.held_out, "")}
    assert {code for code, where in found if "facts-train" in where} == set()
    assert {code for code, _where in found} <= {one.code for one in lint(alone.train, alone.held_out, "")}


# What is written ----------------------------------------------------------------------------------------------------


def test_records_have_the_usual_system_prompt_and_a_mark_that_is_not_trained_on(here: Path) -> None:
    found = made()
    assert found.file == Path("facts-train.jsonl") and set(found.counts) == {"cat"}
    assert len(records()) == len(found.samples) == 8
    for record in records():
        assert record["made_from"] == {"sheet": "facts.toml", "facts": ["cat"]}
        assert record["messages"][0] == {"role": "system", "content": "你是林栀。"}
    reading = read_samples("facts-train.jsonl")
    assert reading.findings == () and {one.made_from for one in reading.samples} == {"facts.toml#cat"}
    assert "facts.toml" not in str([one.messages for one in reading.samples])


def test_records_have_the_bare_prompt_where_the_facts_are_told_below_it_in_training(here: Path) -> None:
    recipe = Path("mine.toml")
    told = recipe.read_text(encoding="utf-8").replace("data = {", 'data = { system_facts = "facts.toml",')
    recipe.write_text(told, encoding="utf-8")
    made()
    assert {record["messages"][0]["content"] for record in records()} == {"你是林栀。"}


def test_from_a_sheet_alone_without_a_system_message_or_with_that_of_a_file(here: Path) -> None:
    assert not made("facts.toml").has_system
    assert {message["role"] for record in records() for message in record["messages"]} == {"user", "assistant"}
    Path("system.txt").write_text("你是猫。\n", encoding="utf-8")
    assert made("facts.toml", system=Path("system.txt")).has_system
    assert {record["messages"][0]["content"] for record in records()} == {"你是猫。"}


def test_facts_without_wordings_are_named_once_with_the_way_to_mend_it(here: Path) -> None:
    (finding,) = [one for one in made().findings if one.code == "no-wordings"]
    assert finding.level == "warning" and "price" in finding.what and "cat" not in finding.what
    assert "ask = [" in finding.fix and "say = [" in finding.fix


def test_fewer_than_were_asked_for_are_named(here: Path) -> None:
    found = made(per_fact=500)
    (finding,) = [one for one in found.findings if one.code == "few-wordings"]
    assert f"cat ({found.counts['cat']})" in finding.what and found.counts["cat"] < 500


@pytest.mark.parametrize(
    ("conversations", "per_fact"), [(3, 2), (119, 7), (301, 6), (5000, 8)], ids=lambda number: str(number)
)
def test_there_are_as_many_made_samples_as_conversations(here: Path, conversations: int, per_fact: int) -> None:
    """Within 2 and 8 of each fact; samples that were made before are no conversations."""
    one = SHEET.split("\n\n")[0]
    count = 17 if conversations == 119 else 60
    facts = [one.replace('"cat"', f'"cat{n}"').replace("猫", f"{n}号猫") for n in range(count)]
    Path("facts.toml").write_text("\n\n".join(facts), encoding="utf-8")
    write(Path("train.jsonl"), *[system_and((f"第{n}句", "嗯。")) for n in range(conversations)])
    found = made(per_fact=None)
    assert (found.per_fact, found.suits) == (per_fact, conversations)
    recipe = Path("mine.toml").read_text().replace('"train.jsonl"', '["facts-train.jsonl", "train.jsonl"]')
    Path("more.toml").write_text(recipe, encoding="utf-8")
    assert made("more.toml", out=Path("again.jsonl"), per_fact=None).suits == conversations


def test_of_a_sheet_alone_as_many_as_there_may_be(here: Path) -> None:
    found = made("facts.toml", per_fact=None)
    assert (found.per_fact, found.suits) == (fact_samples.MOST, None)


def test_what_is_held_out_is_left_out_and_named(here: Path) -> None:
    write(Path("val.jsonl"), system_and(("那只猫的大名是", "就是定影。")))
    found = made()
    (finding,) = [one for one in found.findings if one.code == "held-out-wording"]
    assert finding.where == "facts.toml:1: cat" and "那只猫的大名是？" in finding.what
    assert "大名" not in Path("facts-train.jsonl").read_text(encoding="utf-8")


def test_a_share_of_the_samples_is_held_out_of_the_others_alone(here: Path) -> None:
    made()
    Path("mine.toml").write_text(
        'name = "mine"\nmodel.base = "builtin:tiny"\nfacts.file = "facts.toml"\n'
        'data = { train = ["facts-train.jsonl", "train.jsonl"], val = 0.4 }\n'
    )
    data = load_recipe("mine.toml").data
    for seed in range(8):
        both, alone = (
            dataset.load_dataset(data, seed),
            dataset.load_dataset(replace(data, train=("train.jsonl",)), seed),
        )
        assert ids(both.held_out) == ids(alone.held_out) and len(both.held_out) == 1
        assert len(both.train) == 10


def ids(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.id for sample in samples]


# What is left alone -------------------------------------------------------------------------------------------------


def test_its_own_file_is_written_anew_and_no_other(here: Path) -> None:
    made()
    first = Path("facts-train.jsonl").read_bytes()
    made(seed=1)
    assert Path("facts-train.jsonl").read_bytes() != first
    train = Path("train.jsonl").read_bytes()
    assert refusal(out=Path("train.jsonl")) == "file-exists" and Path("train.jsonl").read_bytes() == train
    assert refusal(out=Path("facts.toml")) == "file-exists" and refusal(out=here) == "file-exists"
    with open("facts-train.jsonl", "a", encoding="utf-8") as file:  # a sample of one's own among them
        file.write(json.dumps(system_and(("你好", "好。"))) + "\n")
    assert refusal() == "file-exists"


def test_nothing_is_written_where_nothing_can_be_made(here: Path) -> None:
    Path("facts.toml").write_text(SHEET.replace('ask = ["那', 'forbid = []\n#ask = ["那'), encoding="utf-8")
    assert refusal() == "no-wordings" and not Path("facts-train.jsonl").exists()


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_sheet_is_called_empty_and_no_recipe(here: Path, text: str) -> None:
    Path("empty.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        made("empty.toml")
    (finding,) = refused.value.findings
    assert (finding.code, finding.where) == ("facts-empty", "empty.toml") and "is empty" in finding.what


def test_a_recipe_without_a_sheet(here: Path) -> None:
    Path("mine.toml").write_text('name = "mine"\nmodel.base = "builtin:tiny"\ndata.train = "train.jsonl"\n')
    assert refusal() == "no-facts"


def test_a_system_prompt_that_no_sample_may_hold(here: Path) -> None:
    Path("system.txt").write_text("你是\x07猫。", encoding="utf-8")
    assert refusal(system=Path("system.txt")) == "control-character"
    assert refusal(system=Path("nothing.txt")) == "recipe-not-found"


def test_how_it_is_trained_on(here: Path) -> None:
    found = made()
    assert found.line == 'train = ["train.jsonl", "facts-train.jsonl"]'
    assert """--set 'data.train=["train.jsonl", "facts-train.jsonl"]'""" in found.command
    assert made("facts.toml").command == ""
    Path("mine.toml").write_text(
        Path("mine.toml").read_text().replace('"train.jsonl"', '["./facts-train.jsonl", "train.jsonl"]')
    )
    again = made()
    assert again.is_named and again.command.endswith("run mine.toml")


def test_another_file_of_the_sheet_takes_the_place_of_the_one_that_is_named(here: Path) -> None:
    made()
    Path("mine.toml").write_text(
        Path("mine.toml").read_text().replace('"train.jsonl"', '["facts-train.jsonl", "train.jsonl"]')
    )
    found = made(out=Path("few.jsonl"), per_fact=2)
    assert found.line == 'train = ["train.jsonl", "few.jsonl"]' and not found.is_named
    other = json.loads(Path("facts-train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    other["made_from"]["sheet"] = "other.toml"
    write(Path("facts-train.jsonl"), other)  # of another sheet: it stays
    assert made(out=Path("few.jsonl"), per_fact=2).line == 'train = ["facts-train.jsonl", "train.jsonl", "few.jsonl"]'
