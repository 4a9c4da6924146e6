"""The chat template inside a GGUF file against the one of training, by what both render."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import written_runs
from series import RECIPE, Series

from fasttune.analysis import diagnose
from fasttune.analysis.template_findings import renders_as_trained, template_findings
from fasttune.export import chatml
from fasttune.runs import documents
from fasttune.runs.store import Run

SYSTEM = "你叫林栀。\n说话'简短'。"
PLAIN = chatml.PLAIN
LLAMA_2 = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    Series.new(tmp_path / "series", RECIPE)
    monkeypatch.chdir(tmp_path / "series")
    made = written_runs.write_run(written_runs.request("train.epochs=2"))
    documents.write(made.plan, replace(documents.read_plan(made), system=SYSTEM))
    return made


def export(run: Run, template: str) -> Path:
    """A GGUF file of the run with this template in it."""
    run.exports.mkdir(exist_ok=True)
    path = run.exports / "persona-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("template", "system", "same"),
    [
        (chatml.served_template(None, SYSTEM), SYSTEM, True),
        (PLAIN, None, True),
        (PLAIN, SYSTEM, False),  # a conversation without a system message would get no persona
        (chatml.served_template(None, "你是助手。"), SYSTEM, False),
        (LLAMA_2, None, False),
        ("", None, False),
        ("{{ raise_exception('no') }}", None, False),
        ("{% for", None, False),
        ("{% for n in range(10**9) %}{{ n }}{% endfor %}", None, False),
    ],
)
def test_what_a_template_renders_decides(template: str, system: str | None, same: bool) -> None:
    assert renders_as_trained(template, system, "x.gguf") == same


def test_another_template_inside_the_file_comes_first(run: Run) -> None:
    path = export(run, chatml.served_template(None, SYSTEM))
    plan = documents.read_plan(run)
    assert template_findings(run, plan) == []
    export(run, LLAMA_2)
    (found,) = template_findings(run, plan)
    assert (found.code, found.level) == ("template-mismatch", "error") and path.name in found.what
    diagnosed = diagnose.diagnose(run.root, run.id)
    assert diagnosed.findings[0] == found
    assert diagnosed.command == f"rm {path} && fasttune export {run.id}"


def test_a_file_that_is_no_gguf_is_another_matter(run: Run) -> None:
    path = export(run, LLAMA_2)
    path.write_bytes(b"gguf")
    assert template_findings(run, documents.read_plan(run)) == []
