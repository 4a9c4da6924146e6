"""What whoever trains several runs in one process is told of each of them, and the base that they share.

Nothing of it reaches the weights: a run that is watched trains what the same run trains by itself, bit for bit on a CPU
(E1, E2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.recipe.schema import ModelRecipe
from fasttune.runs.store import Run
from fasttune.training import device
from fasttune.training import model as models


@dataclass(frozen=True)
class Watch:
    """Who watches a run.

    `began` is called with the run before its first step, also where it is resumed. `is_hopeless` is called after each
    evaluation but the last with all of the run so far, (epochs, held-out loss in nats a supervised token), oldest
    first; where it returns True the training is stopped with a checkpoint, as by Ctrl-C. The base is loaded by `base`.
    """

    began: Callable[[Run], None]
    is_hopeless: Callable[[Sequence[tuple[float, float]]], bool]
    base: SharedBase


class SharedBase:
    """A base that is loaded once for the runs that one process trains after each other.

    Each run gets modules of its own that hold the same frozen weights, so that nothing of an earlier run is left in
    them: an adapter of another rank, hooks, forward passes that were replaced. `may_be_shared` says which bases are
    loaded anew for each run.
    """

    def __init__(self) -> None:
        self.key: tuple[Path, ModelRecipe] | None = None
        self.model: Any = None

    def make_room(self, base: Path, recipe: ModelRecipe) -> bool:
        """Free what the run before has left, and a base that is another one, so that never two are in memory. Returns
        whether this one is there."""
        if self.key != (base, recipe):
            self.drop()
        device.release_memory()  # a model is part of cycles
        return self.model is not None

    def drop(self) -> None:
        """Hold no base any longer."""
        self.model = self.key = None

    def load(self, base: Path, recipe: ModelRecipe) -> Any:
        """The frozen base in a local folder, as `models.load_base` returns it."""
        if not self.make_room(base, recipe):
            loaded = models.load_base(base, recipe)
            if not may_be_shared(loaded, recipe):
                return loaded
            self.model, self.key = loaded, (base, recipe)
        return with_same_weights(self.model)


def may_be_shared(model: Any, recipe: ModelRecipe) -> bool:
    """Whether modules of several runs may hold a base's weights in turn.

    Not in 4 bits: a weight of bitsandbytes points back at its own module, and Unsloth keeps launches of its kernels on
    it. Nor where accelerate has spread the base over several GPUs: its `to` and `cuda` stay with the model they are of.
    """
    return not recipe.load_in_4bit and not hasattr(model, "_hf_hook")


def with_same_weights(model: Any) -> Any:
    """A copy of a model's modules that shares all its parameters with it, and the tokenizer that Unsloth keeps there.

    Without Unsloth's `fast_generate`, which would answer by the model that was copied.
    """
    shared = (*model.parameters(), getattr(model, "_saved_temp_tokenizer", None))
    copied = copy.deepcopy(model, {id(one): one for one in shared})
    vars(copied).pop("fast_generate", None)
    return copied
