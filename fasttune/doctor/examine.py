"""`fasttune doctor`: which checks there are, and in what order they are done.

    look at driver and kernel ─► checks of the machine, side by side ─► three training steps

Those that can hang or end a process are done in a child process (child.py), the others in threads with a time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fasttune.console import _
from fasttune.doctor import child, disk, driver, packages, services, steps, windows
from fasttune.doctor.outcome import Check, carried_out, not_applicable
from fasttune.doctor.situation import Situation, look

SECONDS = 5.0  # for one check of the machine
MACHINE: dict[str, Callable[[Situation], Check]] = {
    "gpu-driver": driver.driver,
    "torch-build": driver.torch_build,
    "gpu-memory": driver.memory,
    "package-set": packages.package_set,
    "linux-memory": windows.linux_memory,
    "project-drive": windows.project_drive,
    "disk": disk.disk,
    "hub": services.hub,
}
SERVED_BY = ("ollama", "llama-cpp")
BY_DOING = ("matrix-product", "triton-kernel", "nf4-round-trip", "pinned-memory", "memory-spill")


def examine(runs: Path, *, trains: bool = True) -> Iterator[Check]:
    """All checks, each as soon as it and those before it are done; `trains`: the training steps too.

    Nothing is left behind but what a training leaves in the caches.
    """
    situation = look(runs)
    with ThreadPoolExecutor() as pool:
        doing = pool.submit(by_doing, situation)
        served = pool.submit(lambda: list(child.run(SERVED_BY)))
        machine: list[Future[Check]] = [
            pool.submit(carried_out, name, partial(work, situation), SECONDS) for name, work in MACHINE.items()
        ]
        yield from (future.result() for future in machine)
        yield from served.result()
        yield from doing.result()
    if trains:
        yield carried_out(steps.NAME, steps.training_steps, steps.SECONDS + SECONDS)


def by_doing(situation: Situation) -> list[Check]:
    """The checks that compute, in a child process; those that mean nothing here are named with the reason."""
    without = not_for(situation)
    results = {check.name: check for check in child.run([name for name in BY_DOING if name not in without])}
    results |= {name: not_applicable(name, reason) for name, reason in without.items()}
    return [results[name] for name in BY_DOING]


def not_for(situation: Situation) -> dict[str, str]:
    """The checks by doing that mean nothing on this machine, each with the reason."""
    if not situation.computes_on_gpu:
        reason = _("no GPU that torch is built for")
        return dict.fromkeys(BY_DOING[1:], reason)
    return {} if situation.wsl else {"memory-spill": _("this is not WSL2")}


def json_document(checks: Sequence[Check]) -> list[dict[str, str | float]]:
    """The checks as `fasttune doctor --json` prints them."""
    return [
        {
            "name": check.name,
            "title": check.title,
            "state": check.state,
            "measured": check.measured,
            "why": check.why,
            "fix": check.fix,
            "seconds": round(check.seconds, 2),
        }
        for check in checks
    ]
