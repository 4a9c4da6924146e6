"""What `fasttune export` prints: the paths of what it made on stdout, or one document with --json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fasttune.console import _, exit_code, print_json, say, show_findings, stderr_console
from fasttune.terminal.export_table import exports_table
from fasttune.terminal.tables import artifacts_json, line, ollama_json

if TYPE_CHECKING:
    from fasttune.export.run_export import Exported


def show_exported(made: Exported, *, as_json: bool) -> int:
    """Print what an export made; the exit code, 1 where Ollama serves something else than was trained."""
    findings = made.ollama.findings if made.ollama else ()
    if as_json:
        print_json(exported_json(made))
        return exit_code(findings)
    if figures := [artifact.figures for artifact in made.artifacts if artifact.figures is not None]:
        stderr_console.print(exports_table(figures))
    paths = [artifact.path for artifact in made.artifacts]
    paths += [path for path in (made.merged, made.lora_file) if path is not None]
    for path in (*paths, *made.copies):
        line(str(path))
    if made.llama_server:
        say(_("with llama.cpp: `{command}`", command=made.llama_server))
    show_findings(findings)
    return exit_code(findings)


def exported_json(made: Exported) -> dict[str, Any]:
    """The document of `fasttune export --json`."""
    return {
        "run": made.origin.run.id,
        "of": made.origin.name,
        "finished": made.origin.is_finished,
        "exports": artifacts_json(made.artifacts),
        "merged": str(made.merged) if made.merged else None,
        "adapter": str(made.lora_file) if made.lora_file else None,
        "copies": [str(path) for path in made.copies],
        "llama_server": made.llama_server or None,
        "ollama": ollama_json(made.ollama),
    }
