"""Which of two lengths counts where a continuation has both: train.max_steps, and the epochs to add or the total of
augment.

train.max_steps in the recipe of a first run is that run's length, as its train.epochs is. A continuation that says how
long it trains, by continue.add_epochs or by being an `augment`, would train nothing where the old number counted on.
"""

from __future__ import annotations

import math

from fasttune.console import Finding, _, usage_error
from fasttune.planning.parents import OVERFIT_EPOCHS
from fasttune.recipe.load import with_values
from fasttune.recipe.schema import Recipe
from fasttune.runs import bands

MAX_STEPS, ADD_EPOCHS = "train.max_steps", "continue.add_epochs"


def one_length(recipe: Recipe) -> tuple[Recipe, list[Finding]]:
    """The recipe of a run that continues from another one, with a single length; and a note where one was left out.

    What --set says counts before what the recipe says; where --continue names the strategy, the recipe's max_steps is
    that of its first run. Raises UsageError where both lengths are said in one place.
    """
    counts = ADD_EPOCHS if recipe.continue_.add_epochs else "strategy" if recipe.strategy == "augment" else ""
    if not counts or not recipe.train.max_steps:
        return recipe, []
    is_typed, is_continuation = (recipe.sources[key] == "override" for key in (MAX_STEPS, "strategy"))
    length_is_typed = recipe.sources[counts] == "override"
    if counts == "strategy":
        return left_out(recipe, MAX_STEPS, counts) if is_continuation and not is_typed else (recipe, [])
    if is_typed == length_is_typed and not (is_continuation and not is_typed):
        raise usage_error(
            "contradiction",
            _("{key} and {other} both say how long this run trains", key=MAX_STEPS, other=ADD_EPOCHS),
            where=f"{recipe.path}: {MAX_STEPS}",
            fix=_("keep one of them: {key} is the step it ends at, {other} what it adds", key=MAX_STEPS,
                  other=ADD_EPOCHS),
        )  # fmt: skip
    return left_out(recipe, ADD_EPOCHS, MAX_STEPS) if is_typed else left_out(recipe, MAX_STEPS, ADD_EPOCHS)


def left_out(recipe: Recipe, key: str, counts: str) -> tuple[Recipe, list[Finding]]:
    """The recipe without a length, and the note that another key counts in its place."""
    value = recipe.train.max_steps if key == MAX_STEPS else recipe.continue_.add_epochs
    what = _("{key} = {value:g} of the recipe is left out: {other} says how long this run trains",
             key=key, value=value, other=counts)  # fmt: skip
    without = with_values(recipe, {key: 0}, f"left out ({counts} counts)")
    return without, [Finding("length-left-out", "info", f"{recipe.path}: {key}", what)]


def states_its_total(recipe: Recipe) -> bool:
    """Whether an `augment` says its epochs: in --set, or in a recipe of that strategy. The epochs in the recipe of a
    first run, which `--continue augment` takes up, are those of that run."""
    own = ("override",) if recipe.sources["strategy"] == "override" else ("override", "recipe")
    return recipe.sources["train.epochs"] in own


def augmented_epochs(samples: int, trained: float) -> float:
    """The total epochs of `augment`: the band's, and at least one more than were trained, up to OVERFIT_EPOCHS."""
    return max(bands.band_epochs(samples), min(math.floor(trained) + 1.0, OVERFIT_EPOCHS))


def lacking_epochs(samples: int, trained: float) -> float:
    """The epochs that so many samples still lack after those that were trained: at least one, in halves."""
    return max(1.0, math.floor(2 * (bands.band_epochs(samples) - trained)) / 2)


def steps_in(epochs: float, per_epoch: int) -> int:
    """ceil(epochs * per_epoch), where 1.1 epochs of 10 steps are 11 in spite of rounding errors."""
    return math.ceil(round(epochs * per_epoch, 6))


def names_a_length(recipe: Recipe) -> bool:
    """Whether a recipe sets epochs, steps or epochs to add."""
    is_set = any(not recipe.sources[key].startswith("default") for key in ("train.epochs", "train.max_steps"))
    return is_set or recipe.continue_.add_epochs > 0
