"""What whoever trains several runs in one process is told of each of them, and the base that they share.

Nothing of it reaches the weights: a run that is watched trains what the same run trains by itself, bit for bit on a CPU
(E1, E2).
"""

from __future__ import annotations

import copy
import gc
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
    first; where it returns True the training is stopped with a checkpoint, as by Ctrl-C. `load_base` takes the place of
    `models.load_base`.
    """

    began: Callable[[Run], None]
    is_hopeless: Callable[[Sequence[tuple[float, float]]], bool]
    load_base: Callable[[Path, ModelRecipe], Any]


class SharedBase:
    """A base that is loaded once for the runs that one process trains after each other.

    Each run gets modules of its own that hold the same frozen weights, so that nothing of an earlier run is left in
    them: an adapter of another rank, hooks, forward passes that were replaced. On a GPU, and in 4 bits, every run loads
    the base anew: Unsloth and bitsandbytes may change weights and quantization states of a model that they set up.
    """

    def __init__(self) -> None:
        self.key: tuple[Path, ModelRecipe] | None = None
        self.model: Any = None

    def load(self, base: Path, recipe: ModelRecipe) -> Any:
        """The frozen base in a local folder, as `models.load_base` returns it."""
        gc.collect()  # the model of the run before is part of cycles; its adapter and optimizer are no longer used
        device.release_memory()
        if device.device_type() != "cpu" or recipe.load_in_4bit:
            return models.load_base(base, recipe)
        if self.key != (base, recipe):
            self.model = None  # first, so that never two bases are in memory
            self.model, self.key = models.load_base(base, recipe), (base, recipe)
        return with_same_weights(self.model)


def with_same_weights(model: Any) -> Any:
    """A copy of a model's modules that shares all its parameters with it."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
