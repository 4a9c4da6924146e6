"""How a model is to be served: how its tokens are sampled, and how long an answer may become.

    base/generation_config.json ─┬─► general.sampling.* in the GGUF file, as llama.cpp's converter writes them
                                 └─► Serving ◄─ [export] of the recipe, which goes first
                                        └─► Modelfile, Ollama, `fasttune chat`, the command of llama-server

The file keeps what the base's authors recommend, whatever a recipe says, so that it need not be written again where a
number changes; the program that loads it is told the recipe's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fasttune.console import Finding, _
from fasttune.export.source_files import read_json_object
from fasttune.recipe.schema import ExportRecipe
from fasttune.runs import documents
from fasttune.runs.store import Run

GENERATION_CONFIG = "generation_config.json"
# generation_config.json -> general.sampling.*, as gguf.Metadata.load, which convert_hf_to_gguf.py calls, has it. That
# one looks for a "penalty_repeat" alone, which transformers calls repetition_penalty; both are taken here.
SAMPLING_KEYS = {
    "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold", "temperature": "temp", "penalty_last_n": "penalty_last_n",
    "repetition_penalty": "penalty_repeat", "penalty_repeat": "penalty_repeat", "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta",
}  # fmt: skip
WHOLE = ("top_k", "penalty_last_n", "mirostat")
LARGEST = 2**31 - 1
ROUNDED_TO = 64  # tokens
SHORTEST = 128  # tokens: a question that asks for more than the data did is not cut in mid-sentence

FileSampling = Mapping[str, float | int]  # {"temp": 0.7, "top_k": 20}: without their general.sampling.


@dataclass(frozen=True)
class Serving:
    """How tokens are sampled, and the longest answer in tokens, by Ollama's names. None leaves it to the program.

    `temperature` is that of fasttune's earlier versions where the base says nothing; 0 takes the likeliest token.
    """

    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None
    repeat_penalty: float | None = None
    num_predict: int | None = None

    @property
    def parameters(self) -> dict[str, float | int]:
        """{name: value} of what is set, in the order of a Modelfile."""
        return {name: value for name, value in asdict(self).items() if value is not None}


DEFAULT = Serving()


def serving(base: Path, recipe: ExportRecipe, longest_answer: int) -> Serving:
    """What a recipe says, and for "auto" what the base's generation_config.json says; num_predict fits
    `longest_answer`, the tokens of the longest answer that was trained (0: unknown)."""
    found = of_base(base)
    asked = {name: getattr(recipe, name) for name in ("temperature", "top_k", "top_p", "repeat_penalty")}
    fitting = fitting_num_predict(longest_answer, recipe.num_ctx)
    length = fitting if recipe.num_predict == "auto" else recipe.num_predict
    return replace(found, num_predict=length, **{name: value for name, value in asked.items() if value != "auto"})


def serving_of_run(run: Run, base: Path, recipe: ExportRecipe) -> Serving:
    """The same of a run. Raises FasttuneError where its provenance.json can't be read."""
    return serving(base, recipe, documents.read_provenance(run).longest_answer)


def of_base(base: Path) -> Serving:
    """What a base's generation_config.json says. One that says do_sample = false and no temperature is greedy."""
    config = read_json_object(base / GENERATION_CONFIG, "generation-config-unreadable", []) or {}
    found = file_sampling(base, [])
    temperature = found.get("temp", 0.0 if config.get("do_sample") is False else Serving.temperature)
    top_k, top_p, repeat = found.get("top_k"), found.get("top_p"), found.get("penalty_repeat")
    return Serving(float(temperature), None if top_k is None else int(top_k), top_p, repeat)


def file_sampling(base: Path, findings: list[Finding]) -> FileSampling:
    """What goes into the file as general.sampling.*; a finding, and nothing, for what is no number in its range."""
    file = base / GENERATION_CONFIG
    if not file.is_file():
        return {}
    unreadable: list[Finding] = []
    config = read_json_object(file, "generation-config-unreadable", unreadable) or {}
    findings += [replace(finding, level="warning") for finding in unreadable]
    found: dict[str, float | int] = {}
    for key, name in SAMPLING_KEYS.items():
        value = config.get(key)
        if value is None:
            continue
        if is_number(value) and (name not in WHOLE or value == int(value)):
            found[name] = int(value) if name in WHOLE else float(value)
        else:
            what = _("{key} is {value}, which is no number that can be sampled by; it is left out",
                     key=key, value=repr(value)[:40])  # fmt: skip
            findings.append(Finding("generation-config-unreadable", "warning", str(file), what))
    return found


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number from 0 to LARGEST."""
    return type(value) in (int, float) and 0 <= value <= LARGEST


def fitting_num_predict(longest_answer: int, num_ctx: int) -> int | None:
    """Tokens that an answer may take: half as many again as the longest trained one, in steps of ROUNDED_TO, at least
    SHORTEST and at most the context. None where the longest one is unknown."""
    if longest_answer <= 0:
        return None
    rounded = math.ceil(longest_answer * 1.5 / ROUNDED_TO) * ROUNDED_TO
    return min(max(rounded, SHORTEST), num_ctx)
