"""model.dtype where the recipe says nothing: what the processor multiplies fast, and what a run began with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from series import RECIPE, Series
from written_runs import planned, request, write_run

from fasttune.analysis import sources
from fasttune.planning import number_type
from fasttune.planning.resume import run_to_resume
from fasttune.planning.strategy import Plan
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs.store import Run

LARGE = "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on a base of 0.5B that says nothing of the number type, on a machine with AMX and without a GPU."""
    monkeypatch.chdir(Series.new(tmp_path, RECIPE.replace("builtin:tiny", LARGE)).folder)
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "fpu amx_tile amx_bf16")
    monkeypatch.setattr(number_type, "visible_gpu", lambda: "")
    return tmp_path


def chosen(plan: Plan) -> tuple[object, str]:
    """The number type with its source."""
    return next((one.value, one.source) for one in plan.document().settings if one.key == "model.dtype")


@pytest.mark.parametrize("given", [(), ("model.dtype=auto",)])
def test_a_processor_with_amx_trains_in_bfloat16(given: tuple[str, ...]) -> None:
    assert chosen(planned(*given)) == ("bfloat16", "default (auto: the processor has AMX)")


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        (("model.dtype=float32",), "override"),
        (("model.base=builtin:tiny",), "default"),  # nothing to gain
        (("model.load_in_4bit=true",), "default"),
    ],
)
def test_where_it_does_not(settings: tuple[str, ...], source: str) -> None:
    assert chosen(planned(*settings)) == ("float32" if source == "override" else "auto", source)


def test_a_processor_without_such_instructions_keeps_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "fpu avx2")
    assert chosen(planned()) == ("auto", "default") and chosen(planned("model.dtype=auto")) == ("auto", "override")


def test_on_a_gpu_its_capability_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> str:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    for gpu in (lambda: "GPU 0: NVIDIA GeForce RTX 4060", hangs):
        monkeypatch.setattr(number_type, "visible_gpu", gpu)
        assert chosen(planned()) == ("auto", "default")
    monkeypatch.setenv("UNSLOTH_FORCE_CPU", "1")
    assert chosen(planned())[0] == "bfloat16"


@pytest.mark.parametrize("flags", ["", "amx_bf16"])
def test_a_run_keeps_its_type_on_another_machine(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Stopped and resumed, or finished and continued: from this processor to the other one."""
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", flags)
    began, _source = chosen(planned())
    run = write_run(request(), "stopped", steps=1)
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "" if flags else "amx_bf16")
    resumed = planned()
    assert chosen(resumed)[0] == began
    assert run_to_resume(request().root, resumed, "resume") == Run(run.root, run.id)
    assert chosen(planned(on_existing="new"))[0] != began  # another run takes what suits this machine


@pytest.mark.parametrize("flags", ["", "amx_bf16"])
@pytest.mark.parametrize("strategy", ["incremental", "retune", "augment", "custom"])
def test_a_continued_run_has_its_parents_type(monkeypatch: pytest.MonkeyPatch, flags: str, strategy: str) -> None:
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", flags)
    began, _source = chosen(planned())
    write_run(request("train.epochs=2"))
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "" if flags else "amx_bf16")
    assert chosen(planned("continue.add_epochs=1", strategy=strategy, allow_overfit=True))[0] == began


def test_a_base_that_is_asked_alone_has_the_type_it_would_be_trained_in(tmp_path: Path) -> None:
    assert number_type.chosen(ModelRecipe(base=LARGE)).dtype == "bfloat16"
    assert number_type.chosen(ModelRecipe(base="builtin:tiny")).dtype == "auto"
    assert number_type.chosen(ModelRecipe(base=LARGE, dtype="float32")).dtype == "float32"


@pytest.mark.parametrize(
    ("text", "width"),
    [('{"hidden_size": 896}', 896), ('{"hidden_size": null}', number_type.WIDE), ("[]", number_type.WIDE),
     ("{", number_type.WIDE), (json.dumps({"hidden_size": 64}), 64)],
)  # fmt: skip
def test_the_width_of_a_base(tmp_path: Path, text: str, width: int) -> None:
    (tmp_path / "config.json").write_text(text)
    assert number_type.width(str(tmp_path)) == width


def test_all_that_asks_a_run_later_loads_its_base_in_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """compare, facts, held-out losses and exports resolve the run's own recipe, perhaps on another machine."""
    run = write_run(request())
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "")
    assert sources.run_recipe(run).model.dtype == "bfloat16"
