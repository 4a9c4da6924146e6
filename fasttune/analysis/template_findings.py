"""Whether what serves a run sends it prompts of the form that it was trained with: the Modelfile's TEMPLATE, and the
chat template inside each GGUF file, which llama.cpp and `fasttune chat` use.

Nothing else about a run can be judged before this is right, so these findings come first.
"""

from __future__ import annotations

import re
import shlex

from fasttune.analysis.remedies import export_command
from fasttune.console import FasttuneError, Finding, _
from fasttune.data import rendering
from fasttune.data.plain_tokenizer import PlainTemplate
from fasttune.runs.documents import PlanDocument
from fasttune.runs.store import Run

TEMPLATE = re.compile(r'^TEMPLATE """(.*?)"""$', re.MULTILINE | re.DOTALL)
ANSWER_BEGINS = "<|im_start|>assistant\n"  # what every ChatML prompt ends with, and so the template of every export


def template_findings(run: Run, plan: PlanDocument) -> list[Finding]:
    """A finding for the Modelfile, and for each GGUF file, with another template than training had."""
    return [*in_modelfile(run), *in_files(run, plan)]


def in_modelfile(run: Run) -> list[Finding]:
    """A Modelfile whose TEMPLATE is not the chat template of training, ChatML, or that has none."""
    if not (text := modelfile(run)):
        return []
    match = TEMPLATE.search(text)
    if match and "<|im_start|>{{ .Role }}" in match[1] and match[1].endswith(ANSWER_BEGINS):
        return []
    what = _("exports/Modelfile has another TEMPLATE than the chat template that it was trained with")
    why = _(
        "Ollama sends it prompts of a form that it has never seen; nothing else can be judged before this is mended"
    )
    return [Finding("template-mismatch", "error", run.id, what, why, f"`{export_command(run)}`")]


def modelfile(run: Run) -> str:
    """The text of a run's Modelfile; empty where it has none."""
    path = run.exports / "Modelfile"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def in_files(run: Run, plan: PlanDocument) -> list[Finding]:
    """GGUF files whose chat template renders a conversation otherwise than training did; one that can't be read is left
    out, for its checksum is another matter."""
    found: list[Finding] = []
    files = sorted(run.exports.glob("*.gguf")) if run.exports.is_dir() else []
    if not files:
        return found
    from fasttune.export.gguf_header import chat_template  # the package loads numpy, which other runs need not wait for

    for path in files:
        template = chat_template(path)
        if template is None or renders_as_trained(template, plan.served_system, str(path)):
            continue
        what = _("the chat template inside exports/{file} is not the one that it was trained with", file=path.name)
        why = _("llama.cpp sends it prompts of a form that it has never seen; nothing else can be judged before this "
                "is mended")  # fmt: skip
        again = f"{shlex.join(['rm', str(path)])} && {export_command(run)}"  # no file is overwritten
        found.append(Finding("template-mismatch", "error", run.id, what, why, f"`{again}`"))
    return found


def renders_as_trained(template: str, system: str | None, where: str) -> bool:
    """Whether a template renders conversations as ChatML, as every training does, and writes the persona's system
    prompt into one that has none."""
    from fasttune.export.chatml import SAMPLE, plain_chatml

    tokenizer = PlainTemplate(template, where)
    asked = [{"role": "user", "content": "x"}]
    conversations = [(SAMPLE, plain_chatml(SAMPLE))]
    if system is not None:
        conversations.append((asked, plain_chatml([{"role": "system", "content": system}, *asked])))
    try:
        return all(rendering.render_checked(tokenizer, said, prompt=True) == text for said, text in conversations)
    except FasttuneError:
        return False
