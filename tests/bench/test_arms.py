"""Arms as `--arms` names them."""

from __future__ import annotations

import pytest

from fasttune.bench import arms
from fasttune.console import UsageError
from fasttune.training import model


def test_an_arm_takes_recipe_values_and_environment_variables() -> None:
    (arm,) = arms.parse_arms("fasttune-no-sharing+train.optim=sgd+FASTTUNE_X=1")
    assert arm.name == "fasttune-no-sharing+train.optim=sgd+FASTTUNE_X=1"
    assert arm.engine == "fasttune"
    assert arm.overrides == ("train.shared_prefix=false", "train.optim=sgd")
    assert arm.environment == (("FASTTUNE_X", "1"),)


@pytest.mark.parametrize("text", ["stock,fast", "stock+train.optim", "", " , "])
def test_an_unknown_arm_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="there is no arm") as caught:
        arms.parse_arms(text)
    (finding,) = caught.value.findings
    assert finding.code == "unknown-arm" and "fasttune-no-packing" in finding.fix


def test_what_arms_leave_out_is_part_of_this_version() -> None:
    for arm in arms.ARMS.values():
        assert all(callable(getattr(model, name)) for name in arm.without), arm.name
