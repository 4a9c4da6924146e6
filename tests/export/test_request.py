"""What a request asks for, made by hand, of a run, and before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from exports import SYSTEM, TINY, request
from kept_epochs import write_epochs
from run_folders import write_run

from fasttune.console import FasttuneError
from fasttune.export.conversations import NONE
from fasttune.export.request import request_before_training, request_for_run
from fasttune.export.serving import Serving
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs import documents, epochs


def test_each_type_once_in_lower_case(tmp_path: Path) -> None:
    one = request(tmp_path, types=("Q8_0", "f16", "q8_0"))
    assert one.types == ("q8_0", "f16")
    assert one.path("q8_0") == tmp_path / "linzhi-Q8_0.gguf" and one.merged == tmp_path / "merged"
    assert not one.is_empty
    assert request(tmp_path, types=()).is_empty and not request(tmp_path, types=(), keep_merged=True).is_empty


def test_tokenizer_of_the_training_goes_first(tmp_path: Path, adapter: Path) -> None:
    assert request(tmp_path).tokenizer == TINY == request(tmp_path, adapter).tokenizer
    (adapter / "tokenizer.json").write_text("{}")
    assert request(tmp_path, adapter).tokenizer == adapter


def test_a_run_is_exported_with_the_prompt_that_it_is_served_with(tmp_path: Path) -> None:
    run = write_run(tmp_path, series="linzhi")
    documents.write(run.plan, replace(documents.read_plan(run), system=SYSTEM, with_facts=f"{SYSTEM}\n\n猫叫定影。"))
    documents.write(run.provenance, replace(documents.read_provenance(run), longest_answer=100))
    assert request_for_run(run, TINY, ExportRecipe()).system == f"{SYSTEM}\n\n猫叫定影。"


def test_request_of_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, series="linzhi")
    documents.write(run.plan, replace(documents.read_plan(run), system=SYSTEM))
    documents.write(run.provenance, replace(documents.read_provenance(run), longest_answer=100))
    made = request_for_run(run, TINY, ExportRecipe(gguf=("f16",), num_ctx=256))
    serving = Serving(temperature=0, num_predict=192)
    assert made.conversations.measured == () and "recipe.toml: there is no such file" in made.conversations.problem
    without = replace(made, conversations=NONE)
    plain = request(run.exports, run.adapter, types=("f16",), num_ctx=256, serving=serving, root=run.root)
    assert without == plain
    run.plan.unlink()
    with pytest.raises(FasttuneError, match="the file is missing"):
        request_for_run(run, TINY, ExportRecipe())


def test_request_before_training(tmp_path: Path) -> None:
    recipe = load_recipe(REPOSITORY / "recipes" / "quickstart.toml", ["export.keep_merged=true"])
    made = request_before_training(TINY, recipe, "a persona", tmp_path)
    assert (made.name, made.types, made.adapter) == ("quickstart", ("q8_0",), None)
    assert made.system == "a persona" and made.keep_merged and made.num_ctx == recipe.export.num_ctx


def test_request_of_a_picked_epoch_has_names_of_its_own(tmp_path: Path) -> None:
    """So that the files of two epochs lie side by side, and going back finds the first ones as they were."""
    run = write_run(tmp_path, series="linzhi")
    write_epochs(run, (2.5, 3))
    before = request_for_run(run, TINY, ExportRecipe(gguf=("q8_0",)))
    assert (before.adapter, before.path("q8_0").name, before.merged.name) == (run.adapter, "linzhi-Q8_0.gguf", "merged")
    epochs.pick(run, epochs.find_epoch(run, "2.5"))
    made = request_for_run(run, TINY, ExportRecipe(gguf=("q8_0",)))
    assert made.adapter == run.epochs / "epoch-2.5"
    assert (made.path("q8_0").name, made.merged.name) == ("linzhi-epoch-2.5-Q8_0.gguf", "merged-epoch-2.5")
    epochs.pick(run, None)
    assert request_for_run(run, TINY, ExportRecipe(gguf=("q8_0",))) == before
