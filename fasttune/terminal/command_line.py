"""The manners of the command line: what click says in the user's language, its help in groups, the nearest command or
option for one that does not exist, and what a shell completes.
"""

from __future__ import annotations

import contextlib
import gettext
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fasttune.command import command_line
from fasttune.console import LOCALE, N_, FasttuneError, UsageError, _, language, nN_, usage_error
from fasttune.recipe import aliases
from fasttune.recipe.schema import KEYS, LEAVES
from fasttune.recipe.values import near_name
from fasttune.runs import epochs, store

# What click itself says in help and errors: marked here, so that the catalog has it (`translate_click`).
CLICK_SAYS = (
    N_("Usage:"),
    N_("Options"),
    N_("Commands"),
    N_("Show this message and exit."),
    N_("Show the version and exit."),
    N_("default: {default}"),
    N_("env var: {var}"),
    N_("required"),
    N_("No such option {name!r}."),
    N_("No such command {name!r}."),
    N_("Missing argument"),
    N_("Missing option"),
    N_("Missing command."),
    N_("Invalid value: {message}"),
    N_("Invalid value for {param_hint}: {message}"),
    N_("{value!r} is not a valid {number_type}."),
    N_("{value} is not in the range {range}."),
    N_("Option {name!r} does not take a value."),
    N_("Missing parameter"),
    N_("{value!r} is not a valid boolean. Recognized values: {states}"),
)
# The same with a number: singular and plural.
CLICK_COUNTS = (
    nN_("Got unexpected extra argument ({args})", "Got unexpected extra arguments ({args})"),
    nN_("Option {name!r} requires an argument.", "Option {name!r} requires {nargs} arguments."),
    nN_("{value!r} is not {choice}.", "{value!r} is not one of {choices}."),
)
# What click calls the types of values, in messages and in help.
TYPES: dict[type[click.ParamType[Any]], str] = {click.IntRange: N_("integer"), click.FloatRange: N_("number")}
# Verbs of other trainers and of other command lines, with the command that does it here.
SYNONYMS = {
    "train": "run", "finetune": "run", "fine-tune": "run", "sft": "run", "resume": "run", "continue": "run",
    "list": "runs", "ls": "runs", "ps": "runs", "status": "runs", "tree": "runs", "history": "runs",
    "ui": "board", "web": "board", "dashboard": "board", "watch": "board", "tensorboard": "board",
    "infer": "chat", "inference": "chat", "generate": "chat", "talk": "chat", "ask": "chat", "serve": "chat",
    "diff": "compare", "eval": "compare", "evaluate": "compare", "blind": "compare --blind", "knows": "facts",
    "page": "report", "html": "report", "summary": "report", "plot": "report", "curves": "report",
    "epochs": "pick", "epoch": "pick", "rollback": "pick", "revert": "pick", "select": "pick",
    "merge": "export", "gguf": "export", "convert": "export", "quantize": "export",
    "tune": "sweep", "search": "sweep", "grid": "sweep", "optuna": "sweep", "hpo": "sweep", "hparams": "sweep",
    "new": "init", "create": "init", "example": "init --example quickstart", "benchmark": "bench",
    "dry-run": "plan", "lint": "check", "validate": "plan", "tokenize": "show", "preview": "show", "help": "--help",
    "version": "--version", "env": "doctor", "info": "doctor", "selftest": "doctor", "nvidia-smi": "doctor",
}  # fmt: skip
# The groups of the help: heading, and the commands in it with what fits beside them in one line.
GROUPS = (
    (N_("Train"), {
        "init": N_("Write a first recipe for a data file, or a complete example"),
        "augment": N_("Make training samples of a fact sheet, so that facts stay"),
        "plan": N_("Show what a training would do; starts nothing"),
        "run": N_("Train, export GGUF files, answer the probe questions"),
        "sweep": N_("Try several values of a setting, choose by held-out loss"),
        "menu": N_("Pick a series, a recipe or a file, and what to do"),
    }),
    (N_("Look"), {
        "runs": N_("Show the runs with their figures and verdicts"),
        "show": N_("Show the tokens of one sample"),
        "report": N_("Write a page about runs, which any browser opens"),
        "board": N_("Show all runs in a browser, live"),
    }),
    (N_("Understand"), {
        "check": N_("Find what is wrong with data before training"),
        "diagnose": N_("Say what is wrong with a training, and what to type next"),
        "facts": N_("Ask a run what it must know: kept, lost, contradicted"),
        "compare": N_("Show two models side by side, with figures or blind"),
    }),
    (N_("Use"), {
        "chat": N_("Talk to the GGUF of a run"),
        "pick": N_("List the epochs of a run, or go back to one"),
        "export": N_("Write GGUF files of a finished run"),
    }),
    (N_("Measure"), {
        "bench": N_("Compare with stock Unsloth and plain peft"),
        "doctor": N_("Find out what is wrong with this machine"),
    }),
)  # fmt: skip
TEXT_COLUMNS = 30  # that a text beside an example takes at least
EXAMPLES = (
    ("init --example quickstart", N_("two minutes to a model that answers")),
    ("init mine --data mine.jsonl", N_("a recipe for your own conversations")),
    ("run recipes/mine.toml", N_("train it; the same command resumes")),
    ("chat mine", N_("talk to the result")),
)


def translate_click() -> None:
    """Let click, which asks the standard library's gettext, speak the user's language from fasttune's catalog."""
    os.environ["LANGUAGE"] = language()
    gettext.bindtextdomain("fasttune", str(LOCALE))
    gettext.textdomain("fasttune")
    for kind, name in TYPES.items():
        kind.name = _(name)


class Verbs(click.Group):
    """The group of all commands; its help lists them in groups, each with a text that fits beside it."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by GROUPS, those that are in none under a heading of their own, then examples."""
        grouped = {name for _heading, texts in GROUPS for name in texts}
        rest = {name: "" for name in self.list_commands(ctx) if name not in grouped}
        for heading, texts in (*GROUPS, (N_("More"), rest)):
            rows = [
                (name, _(text) if text else command.get_short_help_str(60))
                for name, text in texts.items()
                if (command := self.get_command(ctx, name)) is not None and not command.hidden
            ]
            if rows:
                with formatter.section(_(heading)):
                    formatter.write_dl(rows)
        with formatter.section(_("Examples")):
            rows = [(command_line(line.split()), _(example)) for line, example in EXAMPLES]
            widest = max(len(line) for line, _example in rows) + 2
            if widest + TEXT_COLUMNS <= formatter.width:
                formatter.write_dl(rows, col_max=widest)
                return
            space = " " * formatter.current_indent
            for line, example in rows:  # a command is copied, so that no line break may come into it
                formatter.write(f"{space}{line}\n{space}  {example}\n")


# Mistakes on the command line ---------------------------------------------------------------------------------------


def as_usage_error(problem: click.ClickException, group: click.Group) -> UsageError:
    """What click found wrong with a command line, as an error with a hint that names the right command or option."""
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    path = context.command_path.split()[1:] if context is not None else []
    fix = _("`{command}` shows how it is used", command=command_line([*path, "--help"]))
    if isinstance(problem, click.exceptions.NoSuchOption):
        fix = fix_for_option(problem.option_name, context) or fix
        return usage_error("no-such-option", problem.message, fix=fix)
    if isinstance(problem, click.exceptions.NoSuchCommand):
        fix = fix_for_command(problem.command_name, list(group.commands))
        return usage_error("no-such-command", problem.message, fix=fix)
    return usage_error("wrong-usage", problem.format_message(), fix=fix)


def fix_for_command(word: str, known: Sequence[str]) -> str:
    """The hint about a command that does not exist: the one that does it here, or the one with a similar name."""
    meant = (SYNONYMS.get(word.lower()) or near_name(word, known)).split()
    if word.lower().endswith(".toml"):
        meant = ["run", word]
    if meant:
        return _("did you mean `{command}`?", command=command_line(meant))
    names, command = ", ".join(sorted(known)), command_line(["--help"])
    return _("the commands are {names}; `{command}` says what they do", names=names, command=command)


def fix_for_option(word: str, context: click.Context | None) -> str:
    """The hint about an option that does not exist: the recipe's setting of that name, or a similar option."""
    leaf = word.lstrip("-").lower().replace("-", "_").partition("=")[0]
    options = [name for one in context.command.params for name in one.opts if name[:2] == "--"] if context else []
    setting = leaf if leaf in KEYS else LEAVES.get(leaf) or aliases.RENAMED.get(leaf) or ""
    near = near_name(word, options)
    if not setting and not near:
        setting = LEAVES.get(near_name(leaf, LEAVES), "")
    if setting and "--set" in options:
        return _("that is a setting of the recipe: write `--set {key}=…`", key=setting)
    return _("did you mean `{command}`?", command=near) if near else ""


# What a shell completes ---------------------------------------------------------------------------------------------


def complete_setting(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The keys that may stand after --set, as `train.epochs=`."""
    return [CompletionItem(f"{name}=", help=key.help) for name, key in KEYS.items() if name.startswith(incomplete)]


def complete_run(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of series and the ids of runs in the runs folder, as far as it can be listed."""
    root = Path(ctx.params.get("root") or os.environ.get("FASTTUNE_RUNS", "runs"))
    series: list[str] = []
    with contextlib.suppress(OSError):  # a shell would print it amid the line that is being typed
        series = store.list_series(root)
    ids = [run.id for name in series for run in store.list_runs(root, name)]
    return [CompletionItem(name) for name in (*series, *ids) if name.startswith(incomplete)]


def complete_epoch(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The kept epochs of the run that stands on the line, each with its held-out loss, and `best`."""
    root = Path(ctx.params.get("root") or os.environ.get("FASTTUNE_RUNS", "runs"))
    name = ctx.params.get("name") or next(iter(ctx.args), "")  # click gives up at the option that has no value yet
    try:
        kept = epochs.kept_epochs(store.find(root, name))
    except FasttuneError:
        return []
    items = [CompletionItem(epochs.epoch_word(one.epoch), help=f"{one.eval_loss or 0:.3f}") for one in kept]
    return [item for item in [*items, CompletionItem("best")] if item.value.startswith(incomplete)]
