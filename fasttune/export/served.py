"""Which GGUF file of a run speaks for it.

to_serve       of the files that an export has just made: it goes into the Modelfile and Ollama, and answers the
               probe questions
served_gguf    of a finished run, by its Modelfile: it answers in `chat`, and wherever a run is named and a file is
               asked
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fasttune.export.artifact import Artifact, gguf_files, is_held_back, is_of_served_adapter
from fasttune.runs.store import Run

FROM = "FROM ./"


def to_serve(artifacts: Sequence[Artifact]) -> Artifact | None:
    """The first file that keeps enough of what was learned to be served; None where none does."""
    return next((one for one in artifacts if one.is_served), None)


def served_gguf(run: Run) -> Path | None:
    """The GGUF file that a run's Modelfile names, which is the one that Ollama gets; without a Modelfile, or where its
    file is gone, the one that was written last. None where the run has none.

    A file that lost most of what was learned (artifact.is_held_back) speaks for a run only where it is named, and one
    of another epoch than the served one only where there is no other. Raises FasttuneError as epochs.served_adapter
    does.
    """
    named = named_by(run.exports / "Modelfile")
    files = [*reversed(gguf_files(run))]
    if named in files:
        files.sort(key=lambda path: path != named)
    able = [path for path in files if not is_held_back(path)]
    of_served = [path for path in able if is_of_served_adapter(run, path)]
    return next(iter([*of_served, *able]), None)


def named_by(modelfile: Path) -> Path | None:
    """The file that a Modelfile of ours begins with; None where there is none or it can't be read."""
    try:
        first = modelfile.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return None
    name = first.removeprefix(FROM)
    return modelfile.parent / name if first.startswith(FROM) and name == Path(name).name else None
