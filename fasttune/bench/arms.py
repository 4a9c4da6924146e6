"""The arms of a benchmark: an engine with recipe values, environment variables and, for fasttune, parts left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fasttune.bench.jobs import Engine
from fasttune.console import _, usage_error


@dataclass(frozen=True)
class Arm:
    """An engine with recipe values (`KEY=VALUE`) and environment variables of its own.

    `without` names functions of `fasttune.training.model` that make fasttune's model faster and are left out.
    """

    name: str
    engine: Engine
    overrides: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    gpu_only: bool = False
    without: tuple[str, ...] = ()


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain"),
        Arm("stock", "stock"),
        Arm("stock-no-checkpointing", "stock", ("train.gradient_checkpointing=false",)),
        Arm("stock-padding-free", "stock-padding-free", gpu_only=True),
        Arm("fasttune", "fasttune"),
        Arm("fasttune-no-sharing", "fasttune", ("train.shared_prefix=false",)),
        Arm("fasttune-no-packing", "fasttune", ("train.tokens_per_row=0",)),
        Arm("fasttune-neither", "fasttune", ("train.shared_prefix=false", "train.tokens_per_row=0")),
        Arm("fasttune-checkpointing", "fasttune", ("train.gradient_checkpointing=true",)),
        Arm("fasttune-stock-layers", "fasttune", without=("use_cpu_layers",)),
    )
}
LIMIT = Arm("limit", "limit")  # trains nothing: its process measures the machine's matrix-multiply rates


def parse_arms(text: str) -> tuple[Arm, ...]:
    """The arms of a comma-separated list such as "stock,fasttune,fasttune+train.optim=sgd+FASTTUNE_X=1".

    Raises FasttuneError (`unknown-arm`) as `parse_arm` does.
    """
    return tuple(parse_arm(name.strip()) for name in text.split(",") if name.strip() or not text.strip(" ,"))


def parse_arm(name: str) -> Arm:
    """A known arm with each `+KEY=VALUE` added: a recipe value, or an environment variable if KEY is in capitals.

    Raises FasttuneError (`unknown-arm`) for a name that is not in `ARMS`, and for an addition without `=`.
    """
    base, *additions = name.split("+")
    if base not in ARMS or not all("=" in addition for addition in additions):
        raise usage_error(
            "unknown-arm",
            _("there is no arm {name}", name=name),
            where="--arms",
            fix=_(
                "the arms are {names}; `NAME+KEY=VALUE` sets a recipe value, or an environment variable if KEY is in "
                "capitals",
                names=", ".join(ARMS),
            ),
        )
    known = ARMS[base]
    pairs = [(key, value) for key, _sign, value in (addition.partition("=") for addition in additions)]
    return replace(
        known,
        name=name,
        overrides=known.overrides + tuple(f"{key}={value}" for key, value in pairs if not key.isupper()),
        environment=known.environment + tuple((key, value) for key, value in pairs if key.isupper()),
    )
