"""What `fasttune augment` prints: the file it wrote, what it is made of, and how it is trained on."""

from __future__ import annotations

from dataclasses import asdict

from fasttune.console import _, exit_code, ngettext, print_json, say, show_findings, stdout_console
from fasttune.planning.augment import Augmented, AugmentRequest, augment
from fasttune.recipe.values import as_toml


def show_augmented(request: AugmentRequest, *, as_json: bool) -> int:
    """Write the samples of a fact sheet and say what came of it; returns the exit code."""
    made = augment(request)
    if as_json:
        print_json(document(made))
        return exit_code(made.findings)
    show_findings(made.findings)
    size = ngettext("{n} sample", "{n} samples", len(made.samples))
    sources = ngettext("{n} fact or rule of {sheet}", "{n} facts and rules of {sheet}", len(made.counts),
                       sheet=made.sheet)  # fmt: skip
    say(_("wrote {samples} of {sources}", samples=size, sources=sources))
    if made.suits is not None:
        say(_("{n} of each, as suits {conversations}; another number: `--per-fact`", n=made.per_fact,
              conversations=ngettext("{n} conversation", "{n} conversations", made.suits)))  # fmt: skip
    if not made.has_system:
        say(_("without a system message: name a recipe, or the file of the system prompt with `--system FILE`"))
    say(how_to_train(made))
    if not made.is_told:
        say(_("facts are kept best where they stand in the trained prompt too: below [data] write `{line}`",
              line=f"system_facts = {as_toml(made.sheet.as_posix())}"))  # fmt: skip
    stdout_console.print(str(made.file), markup=False, soft_wrap=True)
    return exit_code(made.findings)


def how_to_train(made: Augmented) -> str:
    """What to write into the recipe, or to type."""
    if made.recipe is None:
        return _("train on it beside the other samples: add {file} to `train` below [data] in the recipe",
                 file=as_toml(made.file.as_posix()))  # fmt: skip
    if made.is_named:
        return _("the recipe trains on it: `{command}`", command=made.command)
    return _("train on it: below [data] in {recipe} write `{line}`, or try it once by `{command}`", recipe=made.recipe,
             line=made.line, command=made.command)  # fmt: skip


def document(made: Augmented) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "file": str(made.file),
        "sheet": str(made.sheet),
        "samples": len(made.samples),
        "by_fact": made.counts,
        "per_fact": made.per_fact,
        "has_system": made.has_system,
        "recipe_line": made.line,
        "command": made.command,
        "findings": [asdict(finding) for finding in made.findings],
    }
