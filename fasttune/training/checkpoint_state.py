"""A checkpoint whose files agree with its manifest and yet can't be loaded: one message, and nothing in them is run.

Optimizer, schedule and random state are pickles. torch reads them with `weights_only=True`, which builds tensors and
plain values alone and refuses everything else; what it raises then has no type in common.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerState

from fasttune.console import _, error
from fasttune.runs import documents
from fasttune.runs.documents import TrainerStateFigures

STATE = "trainer_state.json"  # Hugging Face's name
# What torch, safetensors, PEFT and the Trainer raise for a file that is cut, empty, another one or hostile.
UNLOADABLE = (pickle.UnpicklingError, SafetensorError, EOFError, LookupError, TypeError, ValueError, AttributeError,
              RuntimeError)  # fmt: skip


@contextlib.contextmanager
def unloadable_as_error(checkpoint: Path) -> Iterator[None]:
    """Around the loading of a checkpoint's state, and nothing else. Raises FasttuneError where it can't be loaded; out
    of memory passes unchanged."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNLOADABLE as problem:
        reason = next(iter(str(problem).splitlines()), "") or type(problem).__name__
        if isinstance(problem, pickle.UnpicklingError):  # torch's own words advise to unpickle it all the same
            reason = _("it is no pickle, or one that holds more than tensors and plain values")
        what = _("the state in this checkpoint can't be loaded: {problem}", problem=reason[:200])
        why = _("a file in it is not what fasttune writes; nothing in it was run")
        fix = _("move the folder away: the same command resumes from the checkpoint before it")
        raise error("checkpoint-unloadable", what, where=str(checkpoint), why=why, fix=fix) from problem


def require_trainer_state(checkpoint: Path) -> None:
    """Raises FasttuneError where the Trainer could not read its own state in a checkpoint."""
    documents.read(checkpoint / STATE, TrainerStateFigures)
    with unloadable_as_error(checkpoint):
        TrainerState.load_from_json(str(checkpoint / STATE))
