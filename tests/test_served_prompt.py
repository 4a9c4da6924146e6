"""export.prompt = "facts" and data.system_facts through a whole run: the system prompt with the facts is that of the file,
the Modelfile, the answers to the probe questions and of `fasttune chat`; the training sees it with data.system_facts
alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import SHEET
from series import RECIPE, SYSTEM, Series, document

from fasttune.analysis import probe, sources
from fasttune.data import tokenize
from fasttune.runs import store
from fasttune.training import probe_answers

WITH_FACTS = RECIPE.replace("gguf = []", 'gguf = ["f16"]') + (
    '[probe]\nquestions = ["你是谁？"]\nmax_new_tokens = 4\n[facts]\nfile = "facts.toml"\n'
)


@pytest.mark.parametrize("setting", ['export.prompt="facts"', 'data.system_facts="facts.toml"'])
def test_what_is_served_has_the_facts_everywhere(
    tmp_path: Path, one_layer_here: None, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    series = Series.new(tmp_path / "series", WITH_FACTS)
    is_trained = setting.startswith("data.")
    (series.folder / "facts.toml").write_text(SHEET, encoding="utf-8")
    asked: list[str | None] = []

    def prompt_tokens(question: str, system: str | None, tokenizer: Any) -> Any:
        asked.append(system)
        return tokens(question, system, tokenizer)

    tokens = tokenize.prompt_tokens
    for module in (probe, probe_answers):
        monkeypatch.setattr(module, "prompt_tokens", prompt_tokens)
    series.train(setting, "train.max_steps=1", "train.save_steps=1")
    run = series.run(1)
    plan = document(run / "plan.json")
    served = plan["system"] if is_trained else plan["with_facts"]
    assert (plan["with_facts"] is None) == is_trained and (plan["system"] == SYSTEM) == (not is_trained)
    assert served.startswith(f"{SYSTEM}\n\n") and served.endswith("\n猫叫定影。")
    assert f'SYSTEM """{served}"""' in (run / "exports" / "Modelfile").read_text(encoding="utf-8")
    (file,) = (run / "exports").glob("*.gguf")
    assert document(file.with_suffix(".json"))["system"] == served
    assert len(asked) >= 2 and set(asked) == {served}
    root = series.folder / "runs"
    assert sources.find("persona", root).system == sources.gguf(file, root).system == served
    assert (
        document(run / "provenance.json")["system"] == plan["system"]
        and store.find(root, "persona").status == "finished"
    )
