"""The command line: one function a verb. Reads arguments, calls one worker, shows the result.

stdout is data, stderr is talk. Exit codes: 0 good, 1 failed or an error-level finding, 2 wrong usage, 130 stopped by
the user. Workers are imported inside their verb, so that `fasttune --help` loads no torch.
"""

from __future__ import annotations

import os
import sys

import click

import fasttune
from fasttune import files
from fasttune.cli import look, measure, train, understand, use
from fasttune.cli.options import STOPPED
from fasttune.console import FasttuneError, _, prepare_streams, say, show_findings
from fasttune.terminal import command_line


def main() -> None:
    """The console script: findings instead of tracebacks for what a user can mend."""
    # Before anything loads OpenMP: threads that spin at a barrier starve the late one as soon as another process
    # wants a core; measured here, 40 steps of builtin:tiny beside two busy processes took 65 s spinning and 3 s asleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    command_line.translate_click()
    try:
        code = commands.main(prog_name="fasttune", standalone_mode=False)
    except FasttuneError as problem:
        sys.exit(show_problem(problem))
    except click.exceptions.NoArgsIsHelpError as problem:
        say(problem.format_message())
        sys.exit(2)
    except click.ClickException as problem:
        sys.exit(show_problem(command_line.as_usage_error(problem, commands)))
    except OSError as problem:
        known = files.known_condition(problem)
        if known is None:
            raise
        sys.exit(show_problem(known))
    except (click.Abort, KeyboardInterrupt):
        say(_("stopped"))
        sys.exit(STOPPED)
    sys.exit(code or 0)


def show_problem(problem: FasttuneError) -> int:
    """Show an error's findings to the person, with --json also as a document on stdout; returns the exit code."""
    show_findings(problem.findings)
    if problem.after:
        say(problem.after)
    if "--json" in sys.argv[1:]:
        show_findings(problem.findings, as_json=True)
    return problem.exit_code


@click.group(
    cls=command_line.Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help=_("Train a small Qwen2.5 model on your conversations and get a GGUF file that answers."),
)
@click.version_option(fasttune.__version__, prog_name="fasttune", help=_("Show the version and exit."))
def commands() -> None:
    pass


VERBS = (
    train.init, train.augment, train.plan, train.run, train.sweep, train.menu,
    look.show_sample, look.list_runs, look.report, look.board,
    understand.check, understand.diagnose, understand.facts, understand.compare,
    use.chat, use.pick, use.export,
    measure.bench, measure.doctor,
)  # fmt: skip
for verb in VERBS:
    commands.add_command(verb)
