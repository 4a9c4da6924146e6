"""`fasttune plan` refuses what `fasttune run` refuses about a base and its samples, with the same findings."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from data_files import pair, write

from fasttune.console import FasttuneError, Finding
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning.strategy import Plan
from fasttune.training import hub, plan_check
from fasttune.training.train import tokenize

HUB = "Qwen/Qwen2.5-0.5B-Instruct"


def write_recipe(folder: Path, *records: object, base: str = "builtin:tiny") -> Path:
    data = write(folder / "train.jsonl", *records)
    text = f'name = "c"\n[model]\nbase = "{base}"\n[data]\ntrain = "{data}"\n[export]\ngguf = []\n'
    (folder / "c.toml").write_text(text, encoding="utf-8")
    return folder / "c.toml"


def planned(folder: Path, *records: object, base: str = "builtin:tiny") -> Plan:
    return Planner().plan(RunRequest(write_recipe(folder, *records, base=base), root=folder / "runs"))


def refusal(plan: Plan) -> list[Finding]:
    with pytest.raises(FasttuneError) as caught:
        plan_check.base_and_samples(plan)
    return list(caught.value.findings)


LONG = pair("Tell a long story", "word " * 6000)
CONTROL = pair("What is <|im_end|>?", "A token.")


def test_a_sample_that_is_too_long_is_refused_as_training_refuses_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, pair("Who are you?", "Pip."), LONG, CONTROL)
    found = refusal(plan)
    assert [(one.code, one.where) for one in found if one.level == "error"] == [
        ("too-long", f"{tmp_path}/train.jsonl:2")
    ]
    with pytest.raises(FasttuneError) as caught:
        tokenize(plan, hub.TINY)
    assert found == list(caught.value.findings)


def test_held_out_samples_count_too(tmp_path: Path) -> None:
    plan = planned(tmp_path, pair("Who are you?", "Pip."), LONG)
    short, long = plan.dataset.train
    swapped = replace(plan, dataset=replace(plan.dataset, train=(short,), held_out=(long,)))
    assert refusal(swapped)[0].where == long.id


def test_what_training_says_of_its_samples_is_said(tmp_path: Path) -> None:
    plan = planned(tmp_path, CONTROL)
    found = plan_check.base_and_samples(plan)
    assert [one.code for one in found] == ["template-default-system", "control-text"]
    assert list(found) == list(tokenize(plan, hub.TINY).findings)


@pytest.mark.parametrize("base", ["/no/such/folder", "./none"])
def test_a_base_that_is_not_there_is_refused(tmp_path: Path, base: str) -> None:
    assert [one.code for one in refusal(planned(tmp_path, CONTROL, base=base))] == ["base-not-found"]


def test_a_base_that_is_to_be_downloaded_is_no_mistake_and_lengths_are_estimated(tmp_path: Path) -> None:
    assert plan_check.base_and_samples(planned(tmp_path, pair("Who are you?", "Pip."), base=HUB)) == []
    (found,) = plan_check.base_and_samples(planned(tmp_path, pair("a", "b"), LONG, base=HUB))
    assert (found.code, found.level) == ("probably-too-long", "warning")
    assert found.where.endswith("train.jsonl:2")


@pytest.mark.parametrize("template", [None, [{"name": "default", "template": "{{ messages }}"}], "gone", "damaged"])
def test_what_only_transformers_reads_is_left_to_training(tmp_path: Path, template: object) -> None:
    base = Path(shutil.copytree(hub.TINY, tmp_path / "base"))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8")) | {"chat_template": template}
    (base / "tokenizer_config.json").write_text("{" if template == "damaged" else json.dumps(config), encoding="utf-8")
    if template == "gone":
        (base / "tokenizer_config.json").unlink()
    assert plan_check.base_and_samples(planned(tmp_path, LONG, base=str(base))) == []


def test_the_verb_ends_with_1_and_one_message(tmp_path: Path, fasttune: Cli) -> None:
    done = fasttune("plan", write_recipe(tmp_path, LONG))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("error: ") == 1 and "tokens, but max_seq_length is" in done.stderr
    done = fasttune("plan", write_recipe(tmp_path, CONTROL), "--json")
    codes = [one["code"] for one in json.loads(done.stdout)["findings"]]
    assert done.returncode == 0 and "template-default-system" in codes


def test_a_length_beyond_the_bases_own_is_refused_by_every_verb(tmp_path: Path, fasttune: Cli) -> None:
    """On a GPU, Unsloth would stretch the positions of the base without a word."""
    recipe = write_recipe(tmp_path, pair("Who are you?", "Pip."))
    for verb in ("plan", "check", "run"):
        done = fasttune(verb, recipe, "--set", "model.max_seq_length=4097")
        assert done.returncode == 1, verb
        assert "4097 tokens are more than the base's 4096" in done.stderr + done.stdout, verb
        assert "c.toml: model.max_seq_length" in done.stderr + done.stdout
    assert fasttune("plan", recipe, "--set", "model.max_seq_length=4096").returncode == 0


def test_a_probe_question_that_no_sample_may_be_as_long_as_is_refused_before_training(
    tmp_path: Path, fasttune: Cli
) -> None:
    """It is asked after the training, which then ended with an error, or filled the memory."""
    recipe = write_recipe(tmp_path, pair("Who are you?", "Pip."))
    done = fasttune("plan", recipe, "--set", f"probe.questions=['{'word ' * 3000}', 'short']")
    assert done.returncode == 1 and done.stderr.count("error:") == 1, done.stderr
    assert "c.toml: probe.questions: 'word word" in done.stderr and "max_seq_length is 2048" in done.stderr
    long_enough = plan_check.questions_beyond_length(
        Planner().plan(RunRequest(recipe, ("probe.questions=['" + "word " * 300 + "']",), tmp_path / "runs")), hub.TINY
    )
    assert long_enough == []
