"""A recipe from a TOML file and `--set` overrides, checked, with the source of each value.

    name = "linzhi"                    # the series; its runs are in runs/linzhi/
    [model]
    base = "Qwen/Qwen2.5-0.5B-Instruct"
    [data]
    train = "data/linzhi/train.jsonl"

An unknown key is an error that names the right one, also where it is another trainer's name (aliases.py). Values are
checked by values.py. All findings about the file and the overrides come in one `UsageError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fasttune.console import Finding, UsageError, _
from fasttune.recipe import aliases
from fasttune.recipe.mistaken import read_recipe
from fasttune.recipe.schema import KEYS, LEAVES, TABLES, Recipe, Setting
from fasttune.recipe.toml_file import REFUSED, toml_value
from fasttune.recipe.values import MOST_SHOWN, Entry, example_line, in_short, near_name, refusal, setting_value

# [host[:port]/][namespace/]model[:tag], each part as in Ollama's types/model/name.go
OLLAMA_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
OLLAMA_NAME = re.compile(rf"(([A-Za-z0-9_][A-Za-z0-9_.:-]*/)?{OLLAMA_PART}/)?{OLLAMA_PART}(:{OLLAMA_PART})?")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file as it was read: its TOML document, and the line (from 1) of each key in it."""

    path: Path
    document: Mapping[str, Any]
    lines: Mapping[str, int]


def read_recipe_file(path: Path | str) -> RecipeFile:
    """Read a recipe file; `resolve` makes recipes of it, with different overrides if need be.

    Raises UsageError where the file is missing, no text or no TOML, with the command that was meant where it is data or
    the folder of a run.
    """
    return RecipeFile(Path(path), *read_recipe(Path(path)))


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a TOML file with `key=value` overrides; raises what `read_recipe_file` and `resolve` raise."""
    return resolve(read_recipe_file(path), overrides)


def resolve(file: RecipeFile, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a file with `key=value` overrides; of several for one key the last one counts.

    Raises UsageError with one finding for each fault of the file and the overrides.
    """
    path, document, lines = file.path, file.document, file.lines
    overriding, findings = override_entries(overrides)
    written = [
        Entry(key, value, location(path, lines, name), "recipe") for name, key, value in leaves("", "", document)
    ]
    entries = {entry.key: entry for entry in [*written, *overriding]}
    refused: set[str] = set()  # what was meant by entries that were refused: not missing, nor ground for contradictions
    for entry in entries.values():
        problem, meant = check_entry(entry)
        if problem:
            findings.append(problem)
            refused.add(meant)
    for key in KEYS.values():
        if key.required and key.name not in entries and not covered(key.name, refused):
            where, what = location(path, lines, key.name), _("{key} is missing", key=key.name)
            findings.append(Finding("missing-key", "error", where, what, _(key.help), example_line(key)))
    values = {key.name: key.default for key in KEYS.values()}
    values |= {key: setting_value(KEYS[key], entry.value) for key, entry in entries.items() if key in KEYS}
    findings += contradictions({key: value for key, value in values.items() if not covered(key, refused)}, entries)
    if findings:
        raise UsageError(*findings)
    return build(path, values, {key: entries[key].source if key in entries else "default" for key in KEYS})


def settings(recipe: Recipe) -> list[Setting]:
    """Every setting with its value and source, in order of declaration."""
    values = flat(vars(recipe))
    return [Setting(key, values[key], recipe.sources[key]) for key in KEYS]


def with_values(recipe: Recipe, values: Mapping[str, Any], source: str) -> Recipe:
    """A new recipe with other values for some dotted keys: how a run inherits settings from its parent.

    `source` is noted as the source of these values. They may come from JSON, with lists for tuples. Defaults that
    follow from other settings (alpha = 2 × r) are computed again. Raises UsageError where a value, or the recipe that
    results, is not valid, and KeyError for a key that is no setting.
    """
    derived = {key.name: key.default for key in KEYS.values() if recipe.sources[key.name].startswith("default")}
    entries = {key: Entry(key, value, f"{source}: {key}", source) for key, value in values.items()}
    findings = [finding for entry in entries.values() if (finding := refusal(entry, KEYS[entry.key]))]
    if findings:
        raise UsageError(*findings)
    new = flat(vars(recipe)) | derived | {key: setting_value(KEYS[key], value) for key, value in values.items()}
    findings = contradictions(new, entries)
    if findings:
        raise UsageError(*findings)
    sources = {key: "default" if key in derived else recipe.sources[key] for key in KEYS}
    return build(recipe.path, new, sources | dict.fromkeys(values, source))


def build(path: Path, values: Mapping[str, Any], sources: Mapping[str, str]) -> Recipe:
    """The recipe of checked values, with the defaults that follow from other settings filled in."""
    new, origin = dict(values), dict(sources)
    if new["lora.alpha"] == 0:
        new["lora.alpha"], origin["lora.alpha"] = 2 * new["lora.r"], "default (2 × r)"
    if new["train.lr_scheduler_type"] == "constant" and origin["train.warmup_steps"] == "default":
        new["train.warmup_steps"], origin["train.warmup_steps"] = 0.0, "default (constant has no warmup)"
    return Recipe(**assemble(Recipe, "", new), path=path, sources=origin)


def assemble(table: type, prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a table's dataclass from {dotted key: value}, sub-tables included."""
    arguments: dict[str, Any] = {}
    for each in fields(table):
        key = prefix + each.name.rstrip("_")
        if key in KEYS:
            arguments[each.name] = values[key]
        elif key in TABLES:
            arguments[each.name] = TABLES[key](**assemble(TABLES[key], key + ".", values))
    return arguments


def flat(attributes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a built table: the inverse of `assemble`."""
    values: dict[str, Any] = {}
    for name, value in attributes.items():
        key = prefix + name.rstrip("_")
        values |= flat(vars(value), key + ".") if key in TABLES else {key: value} if key in KEYS else {}
    return values


def location(path: Path, lines: Mapping[str, int], name: str) -> str:
    """Where a key stands, as `recipes/x.toml:7: train.lr`: its line, else its table's, else no line."""
    known = name
    while known and known not in lines:
        known = known.rpartition(".")[0]
    return f"{path}:{lines[known]}: {name}" if known else f"{path}: {name}"


def leaves(name: str, key: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(name as written, dotted key, value) of every setting in a table.

    A table whose name is another trainer's or mistyped is yielded as a value, to be refused, and its contents are
    yielded under the right name, to be checked too.
    """
    if not isinstance(value, dict) or (key and (key not in TABLES or not value)):
        yield name, key, value
        return
    for part, inner in value.items():
        inner_name, inner_key = f"{name}.{part}".lstrip("."), f"{key}.{part}".lstrip(".")
        if isinstance(inner, dict) and inner_key not in TABLES and inner_key not in KEYS and meant_table(inner_key):
            yield inner_name, inner_key, inner
            inner_key = meant_table(inner_key)
        yield from leaves(inner_name, inner_key, inner)


def override_entries(overrides: Iterable[str]) -> tuple[list[Entry], list[Finding]]:
    """The entries of `key=value` texts, and findings about those that are not of this form."""
    entries: list[Entry] = []
    findings: list[Finding] = []
    for override in overrides:
        key, sign, text = override.partition("=")
        key, where = key.strip(), f"--set {override[:MOST_SHOWN]}"
        if sign and key:
            found = leaves(key, key, override_value(key, text))
            entries += [Entry(inner_key, value, where, "override") for _name, inner_key, value in found]
        else:
            fix = _("for example `--set train.epochs=2`")
            findings.append(Finding("bad-override", "error", where, _("an override is key=value"), "", fix))
    return entries, findings


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises UsageError with one finding for each override that no recipe could take, whatever recipe it will be."""
    entries, findings = override_entries(overrides)
    findings += [problem for entry in entries if (problem := check_entry(entry)[0])]
    if findings:
        raise UsageError(*findings)


def override_value(key: str, text: str) -> Any:
    """The text as a TOML value; the text itself where it is none, or where its setting takes only the text."""
    value = toml_value(text)
    known = KEYS.get(key)
    is_text = value is REFUSED or (
        known is not None and setting_value(known, value) is REFUSED and setting_value(known, text) is not REFUSED
    )
    return text if is_text else value


def check_entry(entry: Entry) -> tuple[Finding | None, str]:
    """The finding about an entry, if there is one, and the setting or table that was meant ("" where it is unknown)."""
    if entry.key in TABLES:
        return table_problem(entry)
    if entry.key not in KEYS:
        return unknown_table(entry) if isinstance(entry.value, dict) else unknown_key(entry)
    problem = refusal(entry, KEYS[entry.key])
    if entry.key == "name" and not problem and not names_a_folder(entry.value):
        fix = _(
            "use up to 64 letters (Chinese ones too), digits, - _ and . ; begin with a letter or digit, end with no "
            'dot; "current" and the device names of Windows (con, nul, com1 …) are taken'
        )
        problem = entry.refuse("bad-name", _("{name} can't be the name of a series", name=in_short(entry.value)), fix)
    return problem, entry.key


def names_a_folder(name: str) -> bool:
    """Whether a name is valid for a folder on Linux and on Windows drives, and is not `current`."""
    taken = {"current", "con", "prn", "aux", "nul"} | {
        port + digit for port in ("com", "lpt") for digit in "0123456789"
    }
    if name.lower().partition(".")[0] in taken or len(name) > 64 or name.endswith("."):
        return False
    return name[0].isalnum() and all(character.isalnum() or character in "-_." for character in name)


def table_problem(entry: Entry) -> tuple[Finding | None, str]:
    """The finding for a value where a table belongs, or for [train.until] without a setting."""
    if entry.value == {}:
        fix = _("give it loss, token_accuracy or both, or leave it out")
        empty = entry.refuse("empty-value", _("{key} is empty", key=entry.key), fix)
        return empty if entry.key == "train.until" else None, entry.key
    what = _("{key} is a table, not {value}", key=entry.key, value=in_short(entry.value))
    if entry.key in LEAVES:  # train = "file.jsonl"
        return entry.refuse("wrong-type", what, how_to_write(entry, LEAVES[entry.key])), LEAVES[entry.key]
    fix = _("write [{key}] on a line of its own and its settings below", key=entry.key)
    return entry.refuse("wrong-type", what, fix), entry.key


def unknown_table(entry: Entry) -> tuple[Finding, str]:
    """The finding for a table of an unknown name."""
    meant = meant_table(entry.key)
    tables = ", ".join(f"[{name}]" for name in TABLES)
    fix = _("did you mean [{name}]?", name=meant) if meant else _("the tables are {names}", names=tables)
    return entry.refuse("unknown-table", _("there is no table [{name}]", name=entry.key), fix), ""


def unknown_key(entry: Entry) -> tuple[Finding, str]:
    """The finding for an unknown setting: another trainer's name, one of another table, or a typing mistake."""
    table, _dot, leaf = entry.key.rpartition(".")
    leaf = leaf.lower().replace("-", "_")
    here = [key.leaf for key in KEYS.values() if key.table == table]
    what = _("there is no setting {key}", key=entry.key)
    reason = aliases.without_counterpart().get(leaf)
    if reason:
        return entry.refuse("unknown-key", what, reason), ""
    if leaf in aliases.RENAMED:
        meant = aliases.RENAMED[leaf]
        note = aliases.notes().get(meant, "")
        return entry.refuse("unknown-key", what, how_to_write(entry, meant) + (f"; {note}" if note else "")), meant
    near = leaf if leaf in LEAVES else near_name(leaf, here) or near_name(leaf, LEAVES)
    if near:
        return entry.refuse("unknown-key", what, how_to_write(entry, LEAVES[near])), LEAVES[near]
    known = _("the settings of [{table}] are {names}", table=table, names=", ".join(here))
    return entry.refuse("unknown-key", what, known if table in TABLES else _("docs/recipe.md lists every setting")), ""


def how_to_write(entry: Entry, meant: str) -> str:
    """The hint that says where the right key is to be written."""
    key = KEYS[meant]
    if entry.source == "override":
        return _("write `--set {key}=…`", key=meant)
    if entry.source == "vary":
        return _("write `--vary {key}=…`", key=meant)
    if key.table:
        return _("write {leaf} in table [{table}]", leaf=key.leaf, table=key.table)
    return _("write {leaf} at the top of the file, before the first [table]", leaf=key.leaf)


def meant_table(name: str) -> str:
    """The table that is meant by another trainer's or a mistyped name, or "" where none is."""
    inner = {table.rpartition(".")[2]: table for table in TABLES}
    return aliases.RENAMED_TABLES.get(name.lower()) or inner.get(name.lower()) or near_name(name, TABLES)


def covered(key: str, names: Iterable[str]) -> bool:
    """Whether a key, or a table that it is in, is among the names."""
    return any(key == name or key.startswith(name + ".") for name in names if name)


def contradictions(values: Mapping[str, Any], entries: Mapping[str, Entry]) -> list[Finding]:
    """Findings about settings that exclude each other or what they are for.

    `values` holds no setting that was refused already.
    """
    found: list[Finding] = []

    def refuse(key: str, what: str, fix: str) -> None:
        found.append(Finding("contradiction", "error", entries[key].where if key in entries else key, what, "", fix))

    if values.get("data.val") == "":
        fix = _("set data.val to a file or a fraction such as 0.1, or leave this out")
        if values.get("train.early_stopping_patience"):
            what = _("early stopping needs the held-out loss, but there is no data.val")
            refuse("train.early_stopping_patience", what, fix)
        if values.get("train.eval_steps"):
            refuse("train.eval_steps", _("there is no data.val to evaluate on"), fix)
    warmup, reports = values.get("train.warmup_steps", 0.0), values.get("train.report_to", ())
    if warmup > 1 and warmup % 1:
        what = _("{value} is neither a share below 1 nor a whole number of steps", value=warmup)
        refuse("train.warmup_steps", what, _("write {whole} for that many steps", whole=round(warmup)))
    if values.get("train.lr_scheduler_type") == "constant" and warmup and "train.warmup_steps" in entries:
        fix = _('use "constant_with_warmup", or leave warmup_steps out')
        refuse("train.warmup_steps", _('lr_scheduler_type "constant" has no warmup'), fix)
    if "none" in reports and len(reports) > 1:
        refuse("train.report_to", _('"none" excludes every other value'), _("keep one of them"))
    ollama = values.get("export.ollama", "")
    if ollama and not OLLAMA_NAME.fullmatch(ollama):
        what = _("{name} is no name that Ollama can give a model", name=in_short(ollama))
        fix = _("use letters, digits, - _ and . and begin with a letter or digit; one :TAG may follow")
        refuse("export.ollama", what, fix)
    if values.get("export.prompt") == "facts" and values.get("facts.file") == "":
        what = _('"facts" needs a fact sheet, but there is no facts.file')
        refuse("export.prompt", what, _('write [facts] and below it file = "data/mine/facts.toml"'))
    if values.get("export.num_predict") == 0:
        what = _("0 is no answer at all to llama.cpp, and an answer without end to Ollama")
        refuse("export.num_predict", what, _("write -1 for no limit, or leave num_predict out"))
    return found
