"""Printed commands, read and planned as the command line would, so that a message's advice is known not to be refused."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from fasttune.cli import entry
from fasttune.pipeline import Planner, RunRequest
from fasttune.planning.augment import can_augment
from fasttune.planning.resume import run_to_resume
from fasttune.recipe.load import load_recipe
from fasttune.runs import checkpoints, epochs, store

PLACEHOLDERS = {"RUN", "RECIPE", "FILE", "OUT", "NAME", "…"}


def commands_in(text: str) -> list[str]:
    """The commands between backticks in a text, and those on a line of their own."""
    alone = [line.strip() for line in text.splitlines() if line.strip().startswith("fasttune ")]
    return [one for one in re.findall(r"`([^`]*)`", text) if one.startswith("fasttune ")] + alone


def carried_out(command: str) -> None:
    """Read a printed command line as the command line does, and see that it would do what it says; raises where it is
    refused. Nothing is trained."""
    *removing, last = command.split(" && ")
    assert all(Path(shlex.split(one)[1]).is_file() for one in removing if shlex.split(one)[0] == "rm")
    words = shlex.split(last)
    assert words[0] == "fasttune" and not PLACEHOLDERS & set(words), command
    verb, name = words[1], words[2]
    with entry.commands.commands[verb].make_context(verb, words[2:]) as context:
        assert not context.args
    if verb == "check":
        assert Path(name).is_file(), command
    if verb in ("chat", "diagnose", "export", "pick"):
        run = store.find(Path(words[words.index("--runs") + 1] if "--runs" in words else "runs"), name)
        if verb == "chat":
            assert any(run.exports.glob("*.gguf")), command
        if verb == "export":
            assert run.adapter.is_dir(), command
        if verb == "pick" and "--epoch" in words:
            checkpoints.require_whole_adapter(epochs.find_epoch(run, words[words.index("--epoch") + 1]).folder)
    if verb == "augment":
        recipe = load_recipe(name)
        assert can_augment(Path(recipe.facts.file), recipe.data.train), command
    if verb == "run":
        planned(last)


def planned(command: str) -> None:
    """Plan a printed `fasttune run`, with what it does beside the runs there are; raises where it would be refused."""
    words = shlex.split(command)
    assert words[:2] == ["fasttune", "run"]
    overrides = tuple(words[n + 1] for n, word in enumerate(words) if word == "--set")
    given = {flag: words[words.index(flag) + 1] for flag in ("--continue", "--on-existing", "--runs") if flag in words}
    request = RunRequest(
        Path(words[2]), overrides, Path(given.get("--runs", "runs")), given.get("--continue"),
        given.get("--on-existing"), allow_overfit="--allow-overfit" in words,  # type: ignore[arg-type]
    )  # fmt: skip
    resumed = run_to_resume(request.root, Planner().plan(request), request.on_existing)
    assert (resumed is not None) == (request.on_existing == "resume"), command
