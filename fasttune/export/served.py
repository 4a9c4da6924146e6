"""Which GGUF file of a run speaks for it: in `chat`, and wherever a run is named and a file is asked."""

from __future__ import annotations

from pathlib import Path

from fasttune.export.artifact import is_held_back
from fasttune.runs.store import Run

FROM = "FROM ./"


def served_gguf(run: Run) -> Path | None:
    """The GGUF file that a run's Modelfile names, which is the one that Ollama gets; without a Modelfile, or where its
    file is gone, the one that was written last. None where the run has none.

    A file that lost most of what was learned (artifact.is_held_back) speaks for a run only where it is named.
    """
    if not run.exports.is_dir():
        return None
    named = named_by(run.exports / "Modelfile")
    if named is not None and named.is_file() and not is_held_back(named):
        return named
    files = sorted(run.exports.glob("*.gguf"), key=lambda path: path.stat().st_mtime)
    return next((path for path in reversed(files) if not is_held_back(path)), None)


def named_by(modelfile: Path) -> Path | None:
    """The file that a Modelfile of ours begins with; None where there is none or it can't be read."""
    try:
        first = modelfile.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return None
    name = first.removeprefix(FROM)
    return modelfile.parent / name if first.startswith(FROM) and name == Path(name).name else None
