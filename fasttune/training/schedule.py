"""The learning rate of a warmup's steps.

transformers' schedules begin at 0, so that the first step trains nothing: of a run of one step, all of it. Here the
rate rises over the warmup's steps in equal parts, and the first step has the first part.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.optim.lr_scheduler import LambdaLR

Rule = Callable[[int], float]  # steps that are done -> share of the peak learning rate


def warm_up_from_step_one(schedule: LambdaLR, warmup: int) -> None:
    """Give the `warmup` first steps of a new schedule the shares 1 / (warmup + 1), 2 / (warmup + 1) … of the peak; the
    steps after them keep theirs."""
    schedule.lr_lambdas = [warmed_up(rule, warmup) for rule in schedule.lr_lambdas]
    schedule._last_lr = [
        base * rule(schedule.last_epoch) for base, rule in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, learning_rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = learning_rate


def warmed_up(rule: Rule, warmup: int) -> Rule:
    """A schedule's rule with another warmup."""

    def share(done: int) -> float:
        return (done + 1) / (warmup + 1) if done < warmup else rule(done)

    return share
