"""`fasttune augment`: a fact sheet written out as training samples, so that its facts stay.

    FACTS or RECIPE ── sheet, system prompt, held-out samples ──► data.fact_samples ──► facts-train.jsonl

Nothing that is measured is trained on: neither a question that `fasttune facts` asks, nor what a held-out conversation
holds. A record is `{"made_from": {"sheet": …, "facts": […]}, "messages": […]}`; a file of such records may be written
anew, and any other is left alone.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasttune import files
from fasttune.command import command_line
from fasttune.console import FasttuneError, Finding, UsageError, _, ngettext, usage_error
from fasttune.data import fact_samples
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.data.fact_samples import SEED, FactSample, Kept
from fasttune.data.fact_sheet import FactSheet, read_fact_sheet
from fasttune.data.formats import MARK, made_from
from fasttune.data.matching import normalised
from fasttune.data.measured import ANSWER_LETTERS, Measured
from fasttune.data.messages import Notes, check_characters, listed
from fasttune.data.reader import read_records
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import Recipe
from fasttune.recipe.toml_file import read_text, read_toml
from fasttune.recipe.values import as_toml

FILE = "facts-train.jsonl"


@dataclass(frozen=True)
class AugmentRequest:
    """What to write: `source` is a fact sheet or a recipe, `out` None for FILE beside the sheet, `per_fact` None for
    what suits the recipe's conversations, `system` a file."""

    source: Path
    out: Path | None = None
    per_fact: int | None = None
    seed: int = SEED
    system: Path | None = None


@dataclass(frozen=True)
class Augmented:
    """A file of samples made of a fact sheet: how many of each fact or rule, and what else is worth saying.

    `train` is what data.train has to hold for a training on it, `recipe` the one that was named. `per_fact` is how many
    of each were wanted; `suits` the number of conversations that this followed from, None where it was asked for.
    `is_told`: the recipe has the facts in its system prompt as well.
    """

    file: Path
    sheet: Path
    samples: tuple[FactSample, ...]
    counts: dict[str, int]
    has_system: bool
    findings: tuple[Finding, ...]
    train: tuple[str, ...]
    recipe: Path | None
    is_named: bool
    per_fact: int
    suits: int | None
    is_told: bool

    @property
    def line(self) -> str:
        """The line of a recipe that trains on the file, for below [data]."""
        return f"train = {as_toml(self.train)}"

    @property
    def command(self) -> str:
        """What trains on the file; "" where no recipe was named."""
        if self.recipe is None:
            return ""
        change = [] if self.is_named else ["--set", f"data.train={as_toml(self.train)}"]
        return command_line(["run", str(self.recipe), *change])


def augment(request: AugmentRequest) -> Augmented:
    """Write the samples of a fact sheet; an interrupted call leaves the file as it was.

    Raises UsageError for a sheet or recipe that can't be used, a sheet without wordings to train on, and a file in the
    way; FasttuneError for data that can't be read.
    """
    recipe = None if is_sheet(request.source) else load_recipe(request.source)
    sheet = read_fact_sheet(request.source if recipe is None else sheet_of(recipe))
    out = request.out or sheet.path.parent / FILE
    require_own(out)
    data = other_data(recipe, out)
    kept = kept_from(sheet, data)
    conversations = sum(not sample.made_from for sample in data.train) if data else None
    if request.per_fact is None:
        per_fact, samples = fact_samples.suiting_samples(sheet, kept, conversations, request.seed)
    else:
        per_fact, samples = request.per_fact, fact_samples.samples_of(sheet, kept, request.per_fact, request.seed)
    if not samples:
        raise UsageError(replace(without_wordings(sheet), level="error"))
    system = system_prompt(request.system, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, "".join(f"{as_line(sample, sheet, out, system)}\n" for sample in samples))
    counts = Counter(sample.facts[0] for sample in samples)
    missing = [without_wordings(sheet)] if any(not (fact.ask and fact.say) for fact in sheet.facts) else []
    findings = [*missing, *held_out(sheet, data), *fewer(sheet, kept, counts, per_fact)]
    named = [] if recipe is None else [os.path.realpath(path) for path in recipe.data.train]
    is_named = os.path.realpath(out) in named
    train = [path for path in recipe.data.train if is_named or not is_made_of(sheet, path)] if recipe else []
    is_told = recipe is not None and bool(recipe.data.system_facts)
    train += [] if is_named else [out.as_posix()]
    return Augmented(out, sheet.path, tuple(samples), dict(counts), system is not None, tuple(findings), tuple(train),
                     request.source if recipe else None, is_named, per_fact,
                     None if request.per_fact else conversations, is_told)  # fmt: skip


# What is read -------------------------------------------------------------------------------------------------------


def is_sheet(path: Path) -> bool:
    """Whether a file is a fact sheet and not a recipe: by its tables, since both are TOML; an empty file is a sheet."""
    try:
        document, _lines = read_toml(path)
    except UsageError:
        return False  # reading it as a recipe says what is wrong with it
    return not document or bool(document.keys() & {"fact", "never"})


def sheet_of(recipe: Recipe) -> Path:
    """The fact sheet that a recipe names. Raises UsageError where it names none."""
    if recipe.facts.file:
        return Path(recipe.facts.file)
    fix = _('write [facts] and below it file = "data/mine/facts.toml" in the recipe, or name the sheet itself')
    raise usage_error("no-facts", _("this recipe names no fact sheet"), where=str(recipe.path), fix=fix)


def can_augment(sheet: Path, train: Collection[str]) -> bool:
    """Whether samples can be made of a sheet into FILE beside it, and that file is not trained on already."""
    out = sheet.parent / FILE
    if os.path.realpath(out) in map(os.path.realpath, train):
        return False
    try:
        require_own(out)
        return any(fact.ask and fact.say for fact in read_fact_sheet(sheet).facts)
    except FasttuneError:
        return False


def require_own(out: Path) -> None:
    """Raises UsageError for a file that `fasttune augment` did not write: one with a record that has no mark."""
    if not out.exists():
        return
    records, findings = ([], []) if out.is_dir() else read_records(str(out))
    if records and not findings and all(made_from(record.value) for record in records):
        return
    what = _("the file already exists, and it is not one that `fasttune augment` wrote")
    raise usage_error("file-exists", what, where=str(out), fix=_("write another one with `--out FILE`"))


def is_made_of(sheet: FactSheet, path: str) -> bool:
    """Whether a training file holds nothing but samples made of this sheet: a new one takes its place."""
    records, findings = read_records(path)
    marks = [made_from(record.value) for record in records]
    sheets = {os.path.realpath(Path(path).parent / mark.rpartition("#")[0]) if mark else "" for mark in marks}
    return not findings and sheets == {os.path.realpath(sheet.path)}


def other_data(recipe: Recipe | None, out: Path) -> Dataset | None:
    """A recipe's data without the file that is about to be written; None without a recipe, or where it has no other."""
    if recipe is None:
        return None
    own = os.path.realpath(out)
    train = tuple(path for path in recipe.data.train if os.path.realpath(path) != own)
    data = replace(recipe.data, train=train, system_facts="")  # made samples get the bare prompt, as the others have it
    return load_dataset(data, recipe.train.seed) if train else None


def kept_from(sheet: FactSheet, data: Dataset | None) -> Kept:
    """What no sample may repeat or say: the sheet's questions, held-out conversations, phrases of the sheet's rules."""
    questions, answers = said(data, "user"), said(data, "assistant")
    never = tuple(normalised(phrase) for rule in sheet.rules for phrase in rule.forbid)
    return Kept(Measured([*sheet.questions, *questions]), Measured(answers, ANSWER_LETTERS), never)


def said(data: Dataset | None, role: str) -> list[str]:
    """All that one side says in the held-out samples."""
    return [m.content for sample in (data.held_out if data else ()) for m in sample.messages if m.role == role]


def system_prompt(file: Path | None, data: Dataset | None) -> str | None:
    """The system prompt of the samples: that of `file`, else the most frequent one of the recipe's training samples.

    Raises UsageError where the file can't be read or holds what no sample may.
    """
    if file is None:
        prompts = Counter(m.content for sample in (data.train if data else ()) for m in sample.messages
                          if m.role == "system" and not sample.made_from)  # fmt: skip
        return prompts.most_common(1)[0][0] if prompts else None
    notes = Notes(where=str(file))
    text = read_text(file).rstrip("\n")
    check_characters(_("the system prompt"), text, notes)
    if notes.findings:
        raise UsageError(*notes.findings)
    return text


# What is written ----------------------------------------------------------------------------------------------------


def as_line(sample: FactSample, sheet: FactSheet, out: Path, system: str | None) -> str:
    """A sample as a line of JSONL; its mark names the sheet as seen from the file's folder."""
    place = Path(os.path.relpath(sheet.path, out.parent)).as_posix()
    messages = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in sample.turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    record: dict[str, Any] = {MARK: {"sheet": place, "facts": list(sample.facts)}, "messages": messages}
    return json.dumps(record, ensure_ascii=False)


# What is worth saying -----------------------------------------------------------------------------------------------


def without_wordings(sheet: FactSheet) -> Finding:
    """The warning about facts that have no `ask` or no `say`; rules may go without."""
    missing = [fact.id for fact in sheet.facts if not (fact.ask and fact.say)]
    what = ngettext("{n} of {all} facts has nothing to train on: {ids}",
                    "{n} of {all} facts have nothing to train on: {ids}",
                    len(missing), all=len(sheet.facts), ids=listed(missing))  # fmt: skip
    why = _("samples are made of how a fact is asked and what is answered in the first person")
    fix = _("write both below each of them, for example {lines}", lines="; ".join(wordings_example()))
    return Finding("no-wordings", "warning", str(sheet.path), what, why, fix)


def wordings_example() -> tuple[str, str]:
    """Two lines of a sheet."""
    return ('ask = ["那只猫的大名是？", "喂猫的时候你叫它什么？"]', 'say = ["我家猫叫定影，往哪一坐就不动了。"]')


def held_out(sheet: FactSheet, data: Dataset | None) -> list[Finding]:
    """The warning about each wording that was left out, since a held-out sample holds it."""
    questions, answers = Measured(said(data, "user")), Measured(said(data, "assistant"), ANSWER_LETTERS)
    found = []
    for entry in sheet.entries:
        close = [(one, other) for one in entry.ask if (other := questions.like(one))]
        close += [(one, other) for one in entry.say if (other := answers.like(one))]
        for one, other in close:
            what = _("{text} is left out: a held-out sample has {other}", text=as_toml(one), other=as_toml(other))
            why, fix = _("the held-out loss would look better than the model is"), _("write it in other words")
            found.append(Finding("held-out-wording", "warning", f"{entry.where}: {entry.id}", what, why, fix))
    return found


def fewer(sheet: FactSheet, kept: Kept, counts: Counter[str], per_fact: int) -> list[Finding]:
    """The note about facts whose wordings make fewer samples than were asked for."""
    few = [f"{fact.id} ({counts[fact.id]})" for fact in fact_samples.usable(sheet.facts, kept)
           if counts[fact.id] < per_fact]  # fmt: skip
    if not few:
        return []
    what = _("fewer than {n} different samples of {ids}", n=per_fact, ids=listed(few))
    return [Finding("few-wordings", "info", str(sheet.path), what, fix=_("add to `ask` and `say`"))]
