"""The menu of a series at a pseudo-terminal: keys become flags, and the flags train what was chosen."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, Cli
from terminal import CTRL_C, DOWN, ENTER, UP, Steps, answer, type_at, type_here

from fasttune import files
from fasttune.pipeline import Planner, RunRequest
from fasttune.recipe.schema import Setting
from fasttune.runs import documents, store, summary, typed_json
from fasttune.runs.documents import PlanDocument
from fasttune.runs.store import Run
from fasttune.terminal import series_menu

RECIPE = """
name = "persona"
[model]
base = "builtin:tiny"
[data]
train = "{folder}/train.jsonl"
[train]
batch_size = 4
learning_rate = 2e-3
epochs = 2.0
save_steps = 1
save_total_limit = 9
[export]
gguf = []
num_ctx = 1024
"""
pytestmark = pytest.mark.usefixtures("one_layer_base")
FIRST, HOW, START = "What do you want to do?", "How?", "Start?"


def write_samples(path: Path, count: int = 8) -> None:
    pairs = [(f"第{n}个问题？", f"第{n}个回答。") for n in range(count)]
    path.write_text("".join(json.dumps({"instruction": q, "output": a}) + "\n" for q, a in pairs), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its data and the finished run persona/001-fresh of 4 steps, 2 an epoch, with its file."""
    folder = tmp_path_factory.mktemp("trained")
    write_samples(folder / "train.jsonl")
    (folder / "persona.toml").write_text(RECIPE.format(folder=folder), encoding="utf-8")
    for words in (("run", folder / "persona.toml"), ("export", "persona", "--gguf", "f16")):
        done = type_here([], *words, runs=folder / "runs")
        assert done.returncode == 0, done.screen
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """The runs of `trained`, for a test that changes them."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def stop(run: Path, step: int) -> None:
    """What lies in a run folder after a kill -9 behind the checkpoint of this step."""
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "exports", ignore_errors=True)
    (run / "scores.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    (run.parent / "current").unlink(missing_ok=True)


# What the keys come to -----------------------------------------------------------------------------------------------

CONTINUE = (FIRST, "1" + ENTER)
GO = (START, ENTER)
CHOICES: dict[str, tuple[Steps, str]] = {
    "new by number": ([(FIRST, "2" + ENTER), GO], "--on-existing new"),
    "new by arrows": ([(FIRST, DOWN + ENTER), GO], "--on-existing new"),
    "arrows go round": ([(FIRST, UP + UP + ENTER)], "--on-existing skip"),
    "skip by number": ([(FIRST, "4" + ENTER)], "--on-existing skip"),
    "overwrite": (
        [(FIRST, "3" + ENTER), ("Type persona/001-fresh", "persona/001-fresh" + ENTER), GO],
        "--overwrite persona/001-fresh",
    ),
    "nothing typed goes back": (
        [(FIRST, "3" + ENTER), ("Type persona/001-fresh", ENTER), (FIRST, "2" + ENTER), GO],
        "--on-existing new",
    ),
    "incremental, as many epochs as proposed": (
        [CONTINUE, (HOW, "1" + ENTER), ("How many epochs to add to its 2?", ENTER), GO],
        "--continue incremental --set continue.add_epochs=1.5",
    ),
    "incremental by arrows, own number": (
        [(FIRST, ENTER), (HOW, DOWN + UP + ENTER), ("How many epochs to add", "0.5" + ENTER), GO],
        "--continue incremental --set continue.add_epochs=0.5",
    ),
    "a number that is none is not taken": (
        [CONTINUE, (HOW, "1" + ENTER), ("How many epochs", "-1" + ENTER), ("a number above 0", "\x7f\x7f2" + ENTER), GO],
        "--continue incremental --set continue.add_epochs=2.0",
    ),
    "back in the plan": (
        [CONTINUE, (HOW, "1" + ENTER), ("How many", ENTER), (START, "2" + ENTER), (FIRST, "2" + ENTER), GO],
        "--on-existing new",
    ),
    "back from the strategies": ([CONTINUE, (HOW, "6" + ENTER), (FIRST, "2" + ENTER), GO], "--on-existing new"),
    "too many epochs, all the same": (
        [CONTINUE, (HOW, "1" + ENTER), ("How many", "12" + ENTER), ("anyway?", "2" + ENTER), GO],
        "--continue incremental --allow-overfit --set continue.add_epochs=12.0",
    ),
    "too many epochs, rather not": (
        [CONTINUE, (HOW, "1" + ENTER), ("How many", "12" + ENTER), ("anyway?", ENTER), (FIRST, "2" + ENTER), GO],
        "--on-existing new",
    ),
    "retune the learning rate": (
        [CONTINUE, (HOW, "2" + ENTER), ("What do you want to change?", "2" + ENTER), ("Which learning rate?", "3" + ENTER), GO],
        "--continue retune --set train.epochs=2.0 --set train.learning_rate=0.0001",
    ),
    "retune to another learning rate": (
        [CONTINUE, (HOW, "2" + ENTER), ("What do you want to change?", "2" + ENTER), ("Which learning rate?", "6" + ENTER),
         ("a", "2" + ENTER), ("number above 0", "\x7f3e-4" + ENTER), GO],
        "--continue retune --set train.epochs=2.0 --set train.learning_rate=0.0003",
    ),
    "retune the rank": (
        [CONTINUE, (HOW, "2" + ENTER), ("What do you want to change?", "3" + ENTER), ("Which LoRA rank?", DOWN + ENTER), GO],
        "--continue retune --set train.epochs=2.0 --set lora.r=16 --set lora.alpha=32",
    ),
    "retune the epochs": (
        [CONTINUE, (HOW, "2" + ENTER), ("What do you want to change?", "1" + ENTER), ("How many epochs?", "3" + ENTER), GO],
        "--continue retune --set train.epochs=3.0",
    ),
    "retune for quality": (
        [CONTINUE, (HOW, "2" + ENTER), ("What do you want to change?", "4" + ENTER), ("one at a time", ""), GO],
        "--continue retune --set train.learning_rate=0.0001 --set lora.r=16 --set lora.alpha=32 --set train.epochs=3.0",
    ),
    "augment": (
        [CONTINUE, (HOW, "3" + ENTER), ("5 to 8 suit 8 samples", ENTER), GO],
        "--continue augment --set train.epochs=6.5",
    ),
    "custom from the checkpoint": (
        [CONTINUE, (HOW, "4" + ENTER), ("Start from what?", "1" + ENTER), ("How many", "1" + ENTER), ("Which", ENTER), GO],
        "--continue custom --set continue.add_epochs=1.0 --set train.learning_rate=0.002",
    ),
    "custom from the base": (
        [CONTINUE, (HOW, "4" + ENTER), ("Start from what?", "3" + ENTER), ("How many", "1" + ENTER),
         ("Which learning", ENTER), ("Which LoRA", "1" + ENTER), GO],
        "--continue custom --set continue.start=base --set train.epochs=1.0 --set train.learning_rate=0.002 "
        "--set lora.r=4 --set lora.alpha=8",
    ),
}  # fmt: skip


def asked(steps: Steps, request: RunRequest) -> tuple[str, str]:
    """The flags that the menu comes to, and the screen; each was printed as a command line that can be repeated."""
    chosen, screen = answer(steps, lambda: series_menu.ask_about_existing(request, Planner()))
    words = shlex.join(chosen.arguments[2:])
    assert "the same without questions: `fasttune " + shlex.join(chosen.arguments) in screen.replace("\n", " ")
    return words.removeprefix(f"--runs {shlex.quote(str(request.root))}").strip(), screen


@pytest.mark.parametrize("name", CHOICES)
def test_keys_come_to_flags(trained: Path, name: str) -> None:
    steps, flags = CHOICES[name]
    assert asked(steps, RunRequest(trained / "persona.toml", root=trained / "runs"))[0] == flags


@pytest.mark.parametrize("name", [name for name in CHOICES if "--continue" in CHOICES[name][1]])
def test_the_flags_are_a_plan_that_continues(trained: Path, fasttune: Cli, name: str) -> None:
    """What the menu prints works as it is typed, and leaves all that was not asked about as the parent had it."""
    flags = shlex.split(CHOICES[name][1])
    done = fasttune("plan", trained / "persona.toml", *flags, "--json", "--runs", trained / "runs")
    assert done.returncode == 0, done.stderr
    before = documents.read_plan(Run(trained / "runs", "persona/001-fresh"))
    after = typed_json.from_json(PlanDocument, json.loads(done.stdout))
    changed = {change.key for change in summary.changes(before, after)}
    said = set(re.findall(r"(?:train|lora)\.[a-z_]+", " ".join(flags)))
    assert changed - {"epochs"} <= said


def test_the_plan_is_shown_before_the_start(trained: Path) -> None:
    request = RunRequest(trained / "persona.toml", root=trained / "runs")
    screen = asked(CHOICES["incremental, as many epochs as proposed"][0], request)[1]
    assert "001-fresh finished, 2 epochs, loss" in screen
    assert "incremental: continues from step 4 of persona/001-fresh" in screen
    assert "3 steps, up to step 7: 3.5 epochs of 8 samples, 0 held out" in screen
    assert "changed: epochs 2 → 3.5" in screen


def test_a_recipe_that_says_otherwise_yields_to_the_parent(trained: Path, tmp_path: Path) -> None:
    """A checkpoint's settings can't change, so the parent's come with the flags; also after `--set` in an earlier run."""
    text = (trained / "persona.toml").read_text()
    changed = tmp_path / "changed.toml"
    changed.write_text(
        text.replace("2e-3", "1e-3").replace("epochs = 2.0", "max_steps = 9")
        + "[lora]\nr = 4\n[continue]\nadd_epochs = 7.0"
    )
    request = RunRequest(changed, root=trained / "runs")
    steps = CHOICES["incremental, as many epochs as proposed"][0]
    assert asked(steps, request)[0] == (
        "--continue incremental --set lora.r=8 --set train.learning_rate=0.002 --set train.max_steps=0 "
        "--set continue.add_epochs=1.5"
    )
    assert asked(CHOICES["retune the epochs"][0], request)[0] == (
        "--continue retune --set lora.r=8 --set train.learning_rate=0.002 --set train.max_steps=0 "
        "--set continue.add_epochs=0.0 --set train.epochs=3.0"
    )


def test_what_can_not_continue_says_why_and_asks_again(trained: Path, tmp_path: Path) -> None:
    """New samples: the checkpoint's order of samples is no more; the way out is in the hint and in the menu."""
    write_samples(tmp_path / "train.jsonl", 10)
    recipe = tmp_path / "persona.toml"
    recipe.write_text((trained / "persona.toml").read_text().replace(str(trained), str(tmp_path)))
    new = "2 samples are new; the 8 of"
    steps = [
        CONTINUE, (new, ""), (HOW, "1" + ENTER), ("How many", ENTER), (f"samples: {new}", ""),
        (FIRST, ENTER), (HOW, ENTER), ("How many epochs? Its adapter has trained 2", ENTER), GO,
    ]  # fmt: skip
    flags, screen = asked(steps, RunRequest(recipe, root=trained / "runs"))
    assert flags == "--continue custom --set continue.start=adapter --set continue.add_epochs=4.5"
    assert "starts from the adapter of persona/001-fresh" in screen
    assert "23 steps, up to step 23" in screen or "of 10 samples, 0 held out" in screen


def test_a_stopped_run_comes_first_and_resumes_as_it_was_begun(trained: Path, own: Path) -> None:
    """It was begun with --continue and --set; the recipe alone would be refused."""
    stopped = own / "persona" / "002-retune"
    shutil.copytree(own / "persona" / "001-fresh", stopped)
    plan = documents.read(stopped / "plan.json", PlanDocument)
    values = {"strategy": ("retune", "override"), "lora.r": (4, "override"), "lora.alpha": (8, "default (2 × r)")}
    settings = tuple(Setting(one.key, *values.get(one.key, (one.value, one.source))) for one in plan.settings)
    began = replace(plan, strategy="retune", parent="persona/001-fresh", settings=settings)
    documents.write(stopped / "plan.json", began)
    shutil.rmtree(stopped / "adapter")
    request = RunRequest(trained / "persona.toml", root=own)
    flags, screen = asked([(FIRST, ENTER), GO], request)
    assert flags == "--continue retune --on-existing resume --set lora.r=4"
    assert "resume persona/002-retune" in screen and "persona/002-retune resumes at step 4 of 4" in screen
    # Another one beside it does not resume it.
    assert asked([(FIRST, "2" + ENTER), (HOW, "1" + ENTER), ("How many", ENTER), GO], request)[0] == (
        "--continue incremental --on-existing new --set continue.add_epochs=1.5"
    )


def test_a_stopped_run_whose_recipe_was_changed_resumes_from_its_own_copy(
    trained: Path, own: Path, tmp_path: Path
) -> None:
    stop(own / "persona" / "001-fresh", 2)
    changed = tmp_path / "changed.toml"
    changed.write_text((trained / "persona.toml").read_text().replace("2e-3", "1e-3"))
    chosen, screen = answer(
        [(FIRST, ENTER), GO], lambda: series_menu.ask_about_existing(RunRequest(changed, root=own), Planner())
    )
    assert chosen == RunRequest(own / "persona/001-fresh/recipe.toml", root=own, on_existing="resume")
    assert "001-fresh resumes at step 2 of 4" in screen
    assert "continue training" not in screen and "skip training" not in screen  # there is nothing finished


def test_beside_a_run_that_another_process_trains(trained: Path, own: Path) -> None:
    busy = store.create(own, "persona", "fresh")
    shutil.copyfile(trained / "runs/persona/001-fresh/provenance.json", busy.provenance)
    with files.locked(busy.lock, "busy"):
        steps = CHOICES["incremental, as many epochs as proposed"][0]
        flags, screen = asked(steps, RunRequest(trained / "persona.toml", root=own))
    assert flags == "--continue incremental --on-existing new --set continue.add_epochs=1.5"
    assert "002-fresh running" in screen and "resume" not in screen


# The whole way -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [CTRL_C, "5" + ENTER, UP + ENTER], ids=["Ctrl-C", "number", "arrow"])
def test_cancelling_changes_nothing(trained: Path, keys: str) -> None:
    before = sorted(trained.rglob("*"))
    done = type_at([(FIRST, keys)], "run", trained / "persona.toml", runs=trained / "runs")
    assert done.returncode == 130, done.screen
    assert "stopped" in done.screen and "Traceback" not in done.screen
    assert sorted(trained.rglob("*")) == before


def test_ctrl_c_in_a_later_question(trained: Path) -> None:
    steps = [CONTINUE, (HOW, "1" + ENTER), ("How many", CTRL_C)]
    assert type_at(steps, "run", trained / "persona.toml", runs=trained / "runs").returncode == 130


def test_a_wrong_id_removes_nothing_and_the_right_one_that_run_alone(own: Path, trained: Path) -> None:
    store.set_current(store.create(own, "persona", "fresh"))  # killed before it wrote anything
    (own / "persona" / "current").write_text("persona/001-fresh\n")
    steps = [
        (FIRST, "3" + ENTER), ("Which one?", "1" + ENTER), ("Type persona/002-fresh", "persona/001-fresh" + ENTER),
        ("that is not persona/002-fresh", "\x7f" * 17 + "persona/002-fresh" + ENTER), GO,
    ]  # fmt: skip
    done = type_here(steps, "run", trained / "persona.toml", runs=own)
    assert done.returncode == 0, done.screen
    # The new run has a number of its own: the one it replaces stays until the new one is complete.
    assert sorted(path.name for path in (own / "persona").iterdir() if path.is_dir()) == ["001-fresh", "003-fresh"]
    assert (own / "persona/003-fresh/adapter").is_dir()


def test_continuing_and_resuming_by_keys_trains(trained: Path, own: Path) -> None:
    recipe = trained / "persona.toml"
    done = type_here([CONTINUE, (HOW, "1" + ENTER), ("How many", "1" + ENTER), GO], "run", recipe, runs=own)
    assert done.returncode == 0, done.screen
    assert "continues from step 4 of persona/001-fresh" in done.screen
    run = own / "persona" / "002-incremental"
    before, figures = summary.read_series(own, "persona", [])
    assert (figures.parent, figures.steps, figures.epochs, figures.current) == (before.id, 6, 3.0, True)
    weights = (run / "adapter/adapter_model.safetensors").read_bytes()

    stop(run, 5)
    done = type_here([("resume persona/002-incremental", ENTER), GO], "run", recipe, runs=own)
    assert done.returncode == 0, done.screen
    assert (run / "adapter/adapter_model.safetensors").read_bytes() == weights
    assert len(store.list_runs(own, "persona")) == 2


def test_chinese(trained: Path) -> None:
    steps = [("5)", "1" + ENTER), ("📊", CTRL_C)]
    done = type_at(steps, "run", trained / "persona.toml", runs=trained / "runs", FASTTUNE_LANG="zh")
    assert done.returncode == 130
    assert all(key in done.screen for key in ("📈", "⚙️", "📊", "🔧")) and "增量训练" in done.screen


# Without a terminal --------------------------------------------------------------------------------------------------


def test_without_a_terminal_flags_decide(trained: Path, fasttune: Cli) -> None:
    where = ("--runs", trained / "runs")
    stopped = fasttune("run", trained / "persona.toml", *where)
    assert stopped.returncode == 2
    assert "persona has 1 run;" in stopped.stderr and FIRST not in stopped.stderr
    skipped = fasttune("run", trained / "persona.toml", "--on-existing", "skip", *where)
    assert skipped.returncode == 0, skipped.stderr
    assert "persona/001-fresh" in skipped.stdout and "fasttune chat persona" in skipped.stdout
    document = json.loads(fasttune("run", trained / "persona.toml", "--on-existing", "skip", "--json", *where).stdout)
    assert (document["run"], document["skipped"]) == ("persona/001-fresh", True)


def test_skipping_resumes_where_nothing_is_finished(trained: Path, own: Path, fasttune: Cli) -> None:
    """As `make quickstart` does: stopped and repeated it resumes, and once it is complete it is shown."""
    skip = ("run", trained / "persona.toml", "--on-existing", "skip", "--runs", own)
    weights = (own / "persona/001-fresh/adapter/adapter_model.safetensors").read_bytes()
    stop(own / "persona" / "001-fresh", 2)
    done = fasttune(*skip)
    assert done.returncode == 0 and "resuming at step 2" in done.stderr, done.stderr
    assert (own / "persona/001-fresh/adapter/adapter_model.safetensors").read_bytes() == weights
    assert "nothing was trained; this is the run in use" in fasttune(*skip).stderr
    assert len(store.list_runs(own, "persona")) == 1


def test_skipping_beside_a_finished_run_trains_nothing(trained: Path, own: Path, fasttune: Cli) -> None:
    store.create(own, "persona", "fresh")
    done = fasttune("run", trained / "persona.toml", "--on-existing", "skip", "--runs", own)
    assert done.returncode == 0 and "persona/001-fresh" in done.stdout and "resuming" not in done.stderr


def test_skipping_needs_a_run_that_has_begun(trained: Path, tmp_path: Path, fasttune: Cli) -> None:
    store.create(tmp_path / "empty", "persona", "fresh")
    done = fasttune("run", trained / "persona.toml", "--on-existing", "skip", "--runs", tmp_path / "empty")
    assert done.returncode == 2 and "persona has no finished run" in done.stderr


def test_the_quick_start_may_be_repeated() -> None:
    """`make quickstart` says what README says of it: no flag that would begin anew."""
    lines = (REPOSITORY / "Makefile").read_text(encoding="utf-8").split("\n")
    assert "\t.venv/bin/fasttune run recipes/quickstart.toml --on-existing skip" in lines


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--continue", "retune", "--overwrite", "persona/001"], "persona/001-fresh is what this run continues from"),
        (["--overwrite", "persona"], "persona is not the id of a run of persona"),
        (["--overwrite", "other/001"], "other/001 is not the id of a run of persona"),
        (["--overwrite", "persona/007"], "no run called persona/007"),
    ],
)
def test_only_a_run_named_by_its_id_is_overwritten(
    trained: Path, own: Path, fasttune: Cli, flags: list[str], words: str
) -> None:
    store.create(own, "other", "fresh")
    done = fasttune("run", trained / "persona.toml", *flags, "--runs", own)
    assert done.returncode == 2 and words in done.stderr
    assert (own / "persona/001-fresh/adapter").is_dir() and (own / "other/001-fresh").is_dir()
