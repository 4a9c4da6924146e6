"""Sampling and answer length: from the base's generation_config.json, from the recipe, and into the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from exports import TINY, request, silent

from fasttune.console import Finding
from fasttune.export import export
from fasttune.export.modelfile import modelfile
from fasttune.export.serving import Serving, file_sampling, fitting_num_predict, serving
from fasttune.recipe.schema import ExportRecipe

# Qwen/Qwen2.5-0.5B-Instruct/generation_config.json
QWEN = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
AUTO = ExportRecipe()


def base_with(folder: Path, config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return folder


def test_the_file_says_what_llama_cpps_converter_says(base: Path, tmp_path: Path) -> None:
    """gguf.Metadata is what convert_hf_to_gguf.py calls; it knows the penalty by llama.cpp's name alone."""
    base_with(base, {**QWEN, "min_p": 0.05})
    export(request(tmp_path / "out", base=base, types=("f16",)), silent)
    fields = gguf.GGUFReader(tmp_path / "out" / "linzhi-F16.gguf").fields
    found = {name: fields[name].contents() for name in fields if name.startswith("general.sampling.")}
    theirs = gguf.Metadata.load(None, base, "linzhi")
    expected = {
        "general.sampling.top_k": theirs.sampling_top_k,
        "general.sampling.top_p": pytest.approx(theirs.sampling_top_p),
        "general.sampling.min_p": pytest.approx(theirs.sampling_min_p),
        "general.sampling.temp": pytest.approx(theirs.sampling_temp),
        "general.sampling.penalty_repeat": pytest.approx(1.1),
    }
    assert found == expected and theirs.sampling_top_k == 20


def test_the_bases_values_are_served_unless_the_recipe_has_others(tmp_path: Path) -> None:
    folder = base_with(tmp_path, QWEN)
    assert serving(folder, AUTO, 0) == Serving(0.7, 20, 0.8, 1.1, None)
    changed = ExportRecipe(temperature=0.3, top_k=0, top_p=1.0, repeat_penalty=1.0, num_predict=-1)
    assert serving(folder, changed, 500) == Serving(0.3, 0, 1.0, 1.0, -1)


def test_a_base_that_is_greedy_says_so() -> None:
    assert serving(TINY, AUTO, 0) == Serving(temperature=0)  # do_sample = false
    assert serving(TINY, ExportRecipe(temperature=0.5), 0).temperature == 0.5


def test_a_base_without_recommendations_is_served_as_before(tmp_path: Path) -> None:
    assert serving(tmp_path, AUTO, 0) == Serving(temperature=0.7)
    assert file_sampling(tmp_path, []) == {}


@pytest.mark.parametrize(
    "value", [-1, True, "0.7", float("nan"), 1e400, 10**400, [0.7], {}], ids=lambda value: str(value)[:9]
)
def test_a_value_that_is_no_number_is_left_out_with_a_warning(tmp_path: Path, value: Any) -> None:
    folder = base_with(tmp_path, {**QWEN, "temperature": value})
    findings: list[Finding] = []
    assert set(file_sampling(folder, findings)) == {"top_k", "top_p", "penalty_repeat"}
    assert [(one.code, one.level) for one in findings] == [("generation-config-unreadable", "warning")]
    assert serving(folder, AUTO, 0).temperature == 0.7


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "7"])
def test_a_file_that_is_no_json_object_is_a_warning(base: Path, tmp_path: Path, text: str) -> None:
    base_with(base, text)
    lines: list[str] = []
    export(request(tmp_path / "out", base=base, types=("f16",)), lines.append)
    assert any(line.startswith("warning: ") and "generation_config.json" in line for line in lines)


def test_an_answer_may_be_half_as_long_again_as_the_longest_trained_one() -> None:
    assert fitting_num_predict(0, 4096) is None  # a run from before it was recorded
    assert [fitting_num_predict(length, 4096) for length in (1, 85, 86, 300, 4000)] == [128, 128, 192, 512, 4096]


def test_a_modelfile_holds_what_is_set() -> None:
    text = modelfile("x.gguf", None, 2048, Serving(0.7, 20, 0.8, 1.1, 512))
    assert text is not None
    assert text.splitlines()[-6:] == [
        "PARAMETER temperature 0.7", "PARAMETER top_k 20", "PARAMETER top_p 0.8", "PARAMETER repeat_penalty 1.1",
        "PARAMETER num_predict 512", "PARAMETER num_ctx 2048",
    ]  # fmt: skip


def test_large_numbers_are_written_in_full() -> None:
    assert "PARAMETER num_ctx 1048576\n" in (modelfile("x.gguf", None, 2**20) or "")
