"""Which of two lengths counts where a continuation has both: train.max_steps, and the epochs to add or the total of
augment.

train.max_steps in the recipe of a first run is that run's length, as its train.epochs is. A continuation that says how
long it trains, by continue.add_epochs or by being an `augment`, would train nothing where the old number counted on.
"""

from __future__ import annotations

from fasttune.console import Finding, _, usage_error
from fasttune.recipe.load import with_values
from fasttune.recipe.schema import Recipe

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
