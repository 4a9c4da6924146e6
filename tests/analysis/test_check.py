"""`fasttune check`: what it finds by recipe and by file, its figures, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY
from data_files import SHEET, pair, write

from fasttune.analysis.check import check, mended_copy, of_recipe
from fasttune.console import UsageError
from fasttune.data.batches import epoch_batches
from fasttune.data.dataset import load_dataset
from fasttune.recipe.load import load_recipe
from fasttune.terminal import check_report
from fasttune.terminal.check_report import histogram


@pytest.mark.parametrize("name", ["linzhi", "quickstart"])
def test_good_data_have_no_warning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    report = check(Path("recipes") / f"{name}.toml", ["model.base=builtin:tiny"])
    assert [one for one in report.findings if one.level != "info"] == []
    figures = report.figures
    assert figures.exact and figures.held_out and 0 < figures.prefix_computed < figures.prefix_tokens
    assert figures.steps == len(epoch_batches(figures.samples, 16 if name == "linzhi" else 2, 3407, 0))
    assert figures.prefix_tokens == sum(figures.sample_tokens)


@pytest.mark.parametrize("val", ["val.jsonl", 0.2])
def test_a_recipe_is_read_as_the_training_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val: str | float
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facts.toml").write_text(SHEET, encoding="utf-8")
    write(Path("train.jsonl"), *[pair(f"问题{n}", "好。") for n in "甲乙丙丁戊己庚辛壬癸"])
    write(Path("val.jsonl"), pair("别的", "不。"))
    data = {"train": "train.jsonl", "val": val, "system": "你是猫。", "system_facts": "facts.toml"}
    settings = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in data.items())
    Path("r.toml").write_text(f'name = "r"\nmodel.base = "builtin:tiny"\n[data]\n{settings}\n', encoding="utf-8")
    recipe = load_recipe("r.toml")
    source, trained = of_recipe(recipe), load_dataset(recipe.data, recipe.train.seed)
    assert (source.train, source.held_out) == (trained.train, trained.held_out)
    assert all("猫叫定影" in sample.messages[0].content for sample in (*source.train, *source.held_out))


def test_a_file_takes_the_held_out_file_beside_it_and_a_leak_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", *[pair(f"问题{n}号是什么", f"这是第{n}个回答。") for n in "甲乙丙丁"])
    write(tmp_path / "val.jsonl", pair("问题甲号是什么", "这是第甲个回答。"))
    report = check(Path(path))
    (leak,) = [one for one in report.findings if one.code == "val-in-train"]
    assert leak.level == "error" and leak.where.endswith("val.jsonl:1") and f"{path}:1" in leak.what
    assert check_report.show(report, as_json=True) == 1


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_without_a_name_is_a_folder(path: str) -> None:
    """The file beside it is looked for by its name."""
    assert [one.code for one in check(Path(path)).findings] == ["is-a-directory"]


def test_what_training_refuses_is_found_too(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "一"}, {"role": "user", "content": "二"}]
    report = check(Path(write(tmp_path / "data.jsonl", pair("一"), {"messages": turns})))
    assert {"same-role-twice", "ends-with-user"} <= {one.code for one in report.findings}


def test_a_long_sample_is_an_error_by_the_base_and_a_warning_by_estimate(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", pair("一", "好。" * 3000), pair("二", "好。"))
    (long,) = [one for one in check(Path(path)).findings if one.code == "too-long"]
    assert long.level == "warning" and long.where == f"{path}:1"
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "r"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = {json.dumps(path)}\n', encoding="utf-8"
    )
    (exact,) = [one for one in check(recipe).findings if one.code == "too-long"]
    assert exact.level == "error" and exact.where == f"{path}:1"


def test_general_conversations_are_counted_and_must_not_be_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no part of what is checked otherwise: their answers say nothing of the persona."""
    path = write(
        tmp_path / "data.jsonl", *[pair(f"问题{n}", "好。") | {"system": "短。"} for n in "甲乙丙丁戊己庚辛壬癸"]
    )
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "r"\n[model]\nbase = "builtin:tiny"\nmax_seq_length = 32\n'
        f"[data]\ntrain = {json.dumps(path)}\nreplay = 0.2\n",
        encoding="utf-8",
    )
    report = check(recipe)
    assert (report.figures.samples, report.figures.general) == (10, 2)
    long = [one for one in report.findings if one.code == "too-long"]
    assert long and all(one.where.startswith("fasttune/general/train-zh.jsonl:") for one in long)
    assert not [one for one in report.findings if one.where.startswith("fasttune/") and one not in long]
    check_report.show(report, as_json=False)
    assert "and 2 general conversations of replay" in capsys.readouterr().out
    check_report.show(report, as_json=True)
    assert json.loads(capsys.readouterr().out)["figures"]["general"] == 2


@pytest.mark.parametrize(("epochs", "few"), [(4.8, 1), (4.9, 0)])
def test_the_steps_are_those_of_the_plan(tmp_path: Path, epochs: float, few: int) -> None:
    """4.9 epochs of 6 steps are 30 steps: training ends its last epoch with a whole step."""
    path = write(tmp_path / "data.jsonl", *[pair(f"问题{n}", f"好，{n}。") for n in "甲乙丙丁戊己"])
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "r"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = {json.dumps(path)}\n'
        f"[train]\nbatch_size = 1\nepochs = {epochs}\n",
        encoding="utf-8",
    )
    found = [one.what for one in check(recipe).findings if one.code == "few-steps"]
    assert found == ["29 steps in all are very few"] * few


def test_what_auto_takes_is_not_called_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the recipes that leave batch size and epochs to fasttune."""
    monkeypatch.chdir(REPOSITORY)
    for name in ("nell", "nell_facts"):
        codes = {one.code for one in check(Path("recipes") / f"{name}.toml", ["model.base=builtin:tiny"]).findings}
        assert "few-steps" not in codes


def test_a_missing_system_prompt_shows_what_the_template_writes(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *[pair(f"你叫什么{n}", f"我叫林小栀，第{n}回说了。") for n in "甲乙丙"])
    (found,) = [one for one in check(Path(path)).findings if one.code == "template-default-system"]
    assert found.level == "warning" and "You are Qwen" in found.why


def test_a_copy_of_several_files_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", pair("一")), write(tmp_path / "b.jsonl", pair("二"))
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'name = "r"\n[model]\nbase = "builtin:tiny"\n[data]\ntrain = {json.dumps([one, two])}\n')
    with pytest.raises(UsageError):
        mended_copy(recipe, tmp_path / "out.jsonl")


def test_a_histogram_counts_every_value() -> None:
    lines = histogram([1, 1, 2, 40, 100], "#", 80)
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == 5 and len(lines) <= check_report.BINS
    assert lines[0].startswith("  1–") and "#" * check_report.WIDTH in lines[0]


def test_counts_follow_their_numbers() -> None:
    assert check_report.count_line(0, 1, 3) == "0 errors, 1 warning, 3 notes"
    assert check_report.count_line(1, 2, 1) == "1 error, 2 warnings, 1 note"


def test_a_base_that_is_not_here_is_said_in_one_line(tmp_path: Path) -> None:
    path, recipe = write(tmp_path / "data.jsonl", pair("一"), pair("二")), tmp_path / "r.toml"
    recipe.write_text(f'name = "r"\n[data]\ntrain = {json.dumps(path)}\n', encoding="utf-8")
    report = check(recipe, ["model.base=nobody/no-such-base"])
    (found,) = [one for one in report.findings if one.code == "tokens-estimated"]
    assert found.level == "info" and "nobody/no-such-base is not on this machine" in found.what
    assert f"`fasttune run {recipe} --set model.base=nobody/no-such-base`" in found.fix
    assert not report.figures.exact
    exact = check(recipe, ["model.base=builtin:tiny"])
    assert exact.figures.exact and "tokens-estimated" not in {one.code for one in exact.findings}
