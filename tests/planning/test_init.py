"""`fasttune init`: what it chooses from the data and the machine, and that what it writes trains as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Cli

from fasttune.data import dataset
from fasttune.data.dataset import Message, Sample
from fasttune.machine import Machine
from fasttune.planning import init, strategy
from fasttune.recipe.load import load_recipe, settings
from fasttune.recipe.schema import KEYS
from fasttune.runs import bands

CPU = Machine(None, 20.0)


def write_samples(path: Path, count: int, answer: str = "好。", system: str | None = None) -> str:
    lines = []
    for number in range(count):
        messages = [{"role": "user", "content": f"问题{number}？"}, {"role": "assistant", "content": answer}]
        lines.append({"messages": ([{"role": "system", "content": system}] if system else []) + messages})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def chosen(
    tmp_path: Path, count: int, *, base: str | None = None, machine: Machine = CPU, **more: Any
) -> dict[str, Any]:
    """{key: value} of the settings that are written for so many samples."""
    file = write_samples(tmp_path / "chats.jsonl", count, **more)
    return {
        line.key: line.value
        for line in init.settings("mine", [file], dataset.read_samples(file).samples, base, machine)
    }


@pytest.mark.parametrize(
    ("count", "val", "epochs", "batch", "r"),
    [
        (1, None, 6.5, 1, None),
        (6, None, 6.5, 1, None),
        (19, None, 6.5, 4, None),
        (21, None, 5.0, 4, None),
        (30, 0.33, 5.0, 2, None),  # 20 are left to train on
        (60, 0.33, 5.0, 4, None),  # 40 are left
        (200, 0.1, 3.5, 16, None),  # 180 are left
        (300, 0.1, 2.5, 16, 16),
        (2000, 0.05, 2.5, 16, 16),
        (4000, 0.03, 2.5, 16, 32),
    ],
)
def test_values_follow_from_the_number_of_samples(
    tmp_path: Path, count: int, val: float | None, epochs: float, batch: int, r: int | None
) -> None:
    values = chosen(tmp_path, count)
    said = (values.get("data.val"), values["train.epochs"], values["train.batch_size"], values.get("lora.r"))
    assert said == (val, epochs, batch, r)


@pytest.mark.parametrize("count", [1, 3, 7, 16, 19, 20, 33, 64, 150])
def test_what_is_written_loads_and_plans_without_findings(tmp_path: Path, fasttune: Cli, count: int) -> None:
    file, path = write_samples(tmp_path / "chats.jsonl", count), tmp_path / "mine.toml"
    done = fasttune("init", "mine", "--data", file, "--base", "builtin:tiny", "--out", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n" and f"fasttune run {path}" in done.stderr
    assert path.read_text(encoding="utf-8").startswith(f"# fasttune run {path}\n")
    read = load_recipe(path)
    plan = strategy.decide(read, dataset.load_dataset(read.data, read.train.seed), tmp_path / "runs")
    assert not plan.dataset.findings and not plan.findings
    assert plan.steps_per_epoch >= min(4, len(plan.dataset.train))
    low, high = bands.band(len(plan.dataset.train))
    assert low <= plan.epochs <= high + 0.5
    said = {setting.key: setting.value for setting in settings(read) if setting.source == "recipe"}
    assert all(KEYS[key].required or value != KEYS[key].default for key, value in said.items())


@pytest.mark.parametrize(
    ("count", "line", "said"),
    [
        (21, "# Nothing is held out (data.val): of fewer than 22 samples each is needed to learn from.", True),
        (30, "val = 0.33  # of 30 samples, to compare epochs; a verdict takes 20 held-out ones", False),
        (60, "val = 0.33  # of 60 samples: their loss shows over-fitting", False),
    ],
)
def test_why_so_many_are_held_out_stands_beside_it(
    tmp_path: Path, count: int, line: str, said: bool, fasttune: Cli
) -> None:
    file, path = write_samples(tmp_path / "chats.jsonl", count), tmp_path / "mine.toml"
    done = fasttune("init", "mine", "--data", file, "--base", "builtin:tiny", "--out", path)
    assert any(one.startswith(line) for one in path.read_text(encoding="utf-8").splitlines())
    assert ("Nothing is held out" in done.stderr) is said


def test_what_is_written_trains(tmp_path: Path, fasttune: Cli) -> None:
    file = write_samples(tmp_path / "chats.jsonl", 4)
    assert (
        fasttune("init", "灯", "--data", file, "--base", "builtin:tiny", "--out", tmp_path / "x.toml").returncode == 0
    )
    done = fasttune("run", tmp_path / "x.toml", "--set", "train.max_steps=8", "--set", "export.gguf=['f16']", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [probe["question"] for probe in result["probes"]] == ["你好", "你是谁？", "介绍一下你自己"]
    assert result["last"]["loss"] < 0.9 * result["first"]["loss"]


def test_lin_zhi(tmp_path: Path, fasttune: Cli) -> None:
    """The real data: val.jsonl beside train.jsonl is taken, and the recipe is about what was written by hand."""
    path = tmp_path / "linzhi.toml"
    assert fasttune("init", "linzhi", "--data", "data/linzhi/train.jsonl", "--out", path).returncode == 0
    read = load_recipe(path)
    assert read.data.val == "data/linzhi/val.jsonl" and read.lora.r == 16 and read.train.batch_size == 16
    held_out = (REPOSITORY / "data/linzhi/val.jsonl").read_text(encoding="utf-8")
    assert len(read.probe.questions) == 3
    assert all(json.dumps(one, ensure_ascii=False) in held_out for one in read.probe.questions)
    shown = fasttune("plan", path)
    assert shown.returncode == 0 and "warning" not in shown.stderr


def test_nothing_is_written_over(tmp_path: Path, fasttune: Cli) -> None:
    file, path = write_samples(tmp_path / "chats.jsonl", 4), tmp_path / "mine.toml"
    path.write_text("mine")
    done = fasttune("init", "mine", "--data", file, "--out", path)
    assert done.returncode == 2 and "the file already exists" in done.stderr
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["init", "a/b", "--data", "data/quickstart/train.jsonl"], 2, "can't be the name of a series"),
        (["init", "x", "--data", "data/quickstart/train.jsonl", "--base", " "], 2, "model.base"),
        (["init", "x", "--data", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["init", "x"], 2, "--data"),
    ],
)
def test_a_mistake_writes_nothing(fasttune: Cli, arguments: list[str], code: int, words: str) -> None:
    done = fasttune(*arguments)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert not (REPOSITORY / "recipes" / "x.toml").exists()


# The machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu_gib", "base", "small"),
    [
        (23.0, "3B", False),
        (11.0, "3B", False),
        (10.9, "1.5B", False),
        (7.1, "1.5B", False),
        (5.5, "1.5B", True),
        (3.5, "0.5B", False),
        (1.9, "0.5B", True),
        (None, "0.5B", False),
    ],
)
def test_the_base_follows_from_free_memory(tmp_path: Path, gpu_gib: float | None, base: str, small: bool) -> None:
    values = chosen(tmp_path, 30, machine=Machine(gpu_gib, 20.0))
    assert values["model.base"] == f"Qwen/Qwen2.5-{base}-Instruct"
    assert values.get("model.load_in_4bit", False) is small


def test_the_gguf_type_follows_from_the_size_of_the_base() -> None:
    for base in ("Qwen/Qwen2.5-1.5B-Instruct", "/models/qwen2.5-3b"):
        (line,) = init.gguf_lines(base)
        assert (line.key, line.value) == ("export.gguf", ["q4_k_m"]) and line.why
    assert init.gguf_lines("Qwen/Qwen2.5-0.5B-Instruct") == [] == init.gguf_lines("builtin:tiny")


@pytest.mark.parametrize(("gpu_gib", "small"), [(23.0, False), (9.0, True), (None, False)])
def test_a_named_base_that_is_large_for_the_gpu_is_held_in_4_bits(
    tmp_path: Path, gpu_gib: float | None, small: bool
) -> None:
    values = chosen(tmp_path, 30, base="Qwen/Qwen2.5-3B-Instruct", machine=Machine(gpu_gib, 20.0))
    assert values.get("model.load_in_4bit", False) is small


# Lengths and words ---------------------------------------------------------------------------------------------------


def test_long_samples_raise_the_limit(tmp_path: Path) -> None:
    assert "model.max_seq_length" not in chosen(tmp_path, 4, answer="好" * 1000)
    assert chosen(tmp_path, 4, answer="好" * 3000)["model.max_seq_length"] == 3072
    assert chosen(tmp_path, 4, answer="好" * 99000)["model.max_seq_length"] == 32768
    tiny = chosen(tmp_path, 4, answer="好" * 99000, base="builtin:tiny").get("model.max_seq_length", 2048)
    assert tiny == init.context("builtin:tiny")


@pytest.mark.parametrize(("characters", "said"), [(20000, False), (60000, True)])
def test_a_sample_that_is_longer_than_the_context_is_named(
    tmp_path: Path, fasttune: Cli, characters: int, said: bool
) -> None:
    file = write_samples(tmp_path / "chats.jsonl", 1, answer="好" * characters)
    done = fasttune(
        "init", "mine", "--data", file, "--base", "Qwen/Qwen2.5-0.5B-Instruct", "--out", tmp_path / "m.toml"
    )
    assert done.returncode == 0, done.stderr
    assert ("1 sample probably has more than 32768 tokens: this one about 45003" in done.stderr) is said


def test_the_context_is_that_of_the_base(tmp_path: Path) -> None:
    assert init.context("Qwen/Qwen2.5-3B-Instruct") == init.context(None) == init.CONTEXT
    for text, length in [('{"max_position_embeddings": 1000}', 1000), ("[]", init.CONTEXT), ("{", init.CONTEXT)]:
        (tmp_path / "config.json").write_text(text)
        assert init.context(str(tmp_path)) == length


def test_the_estimate_of_length_is_never_below_the_tokens_of_real_data() -> None:
    """Against a tokenizer that makes more tokens than Qwen2.5's own, whose vocabulary is 37 times as large."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "fasttune" / "tiny")
    samples = dataset.read_samples(str(REPOSITORY / "data/quickstart/train.jsonl")).samples
    for sample in samples:
        tokens = sum(len(tokenizer(message.content)["input_ids"]) for message in sample.messages)
        assert tokens <= init.tokens_at_most(sample), sample.id


def sample(number: int, *questions: str) -> Sample:
    turns = [turn for question in questions for turn in (Message("user", question), Message("assistant", "ok"))]
    return Sample(f"f:{number}", (Message("system", "s"), *turns))


def test_questions_are_the_first_of_different_held_out_samples() -> None:
    samples = [
        sample(1, "a?", "not first?"),
        sample(2, "a?"),
        sample(3, "x" * 300),
        sample(4, 'b "quoted"\n?'),
        sample(5, "c?"),
    ]
    assert init.probe_line([], samples).value == ["a?", 'b "quoted"\n?', "c?"]
    assert init.probe_line([], samples[2:3]).value == ["x" * 300]


def test_no_question_is_one_that_is_trained_on() -> None:
    """Its answer would be recited. Standard questions stand in where nothing else is left."""
    trained = [sample(1, "a?", "b?"), sample(2, "Hi")]
    assert init.probe_line(trained, [sample(3, "a?"), sample(4, "c?")]).value == ["c?"]
    assert init.probe_line(trained, [sample(3, "b?")]).value == [
        "Who are you?", "Tell me about yourself.", "How was your day?",
    ]  # fmt: skip
    assert init.probe_line([sample(1, "你是谁？")], []).value == ["你好", "介绍一下你自己", "你今天过得怎么样？"]


def test_a_missing_system_prompt_is_pointed_out(tmp_path: Path, fasttune: Cli) -> None:
    for name, system in (("without", None), ("with", "你是灯。")):
        file = write_samples(tmp_path / f"{name}.jsonl", 4, system=system)
        assert fasttune("init", name, "--data", file, "--out", tmp_path / f"{name}.toml").returncode == 0
    assert "No sample has a system prompt" in (tmp_path / "without.toml").read_text()
    assert "No sample has a system prompt" not in (tmp_path / "with.toml").read_text()


def test_odd_names_of_files_are_quoted(tmp_path: Path, fasttune: Cli) -> None:
    folder = tmp_path / "my chats"
    folder.mkdir()
    file, path = write_samples(folder / 'a "b".jsonl', 4), folder / "林 栀.toml"
    assert fasttune("init", "林栀", "--data", file, "--out", path).returncode == 0
    assert load_recipe(path).data.train == (file,)
    assert path.read_text(encoding="utf-8").startswith(f"# fasttune run '{path}'\n")
