"""From files to a data set: read, check, add the system prompt, hold out, fingerprint.

    reader.read_records ──► formats.conversation ──► Sample ──► split ──► Dataset

Every sample is used or named in a finding: one call reports all problems of all files, and nothing is skipped, cut or
repaired silently. What is accepted: data/formats/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fasttune.console import FasttuneError, Finding, _, error, ngettext
from fasttune.data import general
from fasttune.data.fact_prompt import sheet_to_tell, tell_facts
from fasttune.data.formats import conversation, made_from
from fasttune.data.messages import Message, Notes, Sample, check_characters, listed
from fasttune.data.reader import read_records
from fasttune.recipe.schema import DataRecipe

__all__ = [
    "Dataset",
    "Message",
    "Reading",
    "Sample",
    "conversation_key",
    "fingerprint",
    "general_samples",
    "load_dataset",
    "read_samples",
    "replayed",
    "split",
]

# The name of a field is short: without an end to it, a long word behind {{ would be searched from each of its letters.
PLACEHOLDER = re.compile(r"\{\{ ?(?:name|author|char|user|bot|assistant|\w{0,40}name)\w{0,40} ?\}\}", re.IGNORECASE)
MOST_OF_THEM = 0.8  # of the samples: where so many share a system prompt, the others are exceptions


@dataclass(frozen=True)
class Reading:
    """What one file holds: its valid samples in the file's order, and all findings about it."""

    samples: tuple[Sample, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Dataset:
    """Samples ready to be tokenized: the user's to train on, those held out, and the general conversations of
    data.replay, which are trained on too.

    `fingerprint` is the sha256 of their contents in order. None of `findings` is an error.
    """

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    fingerprint: str
    findings: tuple[Finding, ...]
    general: tuple[Sample, ...] = ()

    @property
    def trained(self) -> tuple[Sample, ...]:
        """All samples that are trained on."""
        return (*self.train, *self.general)


def load_dataset(recipe: DataRecipe, seed: int) -> Dataset:
    """The data set that a recipe's [data] table names; `seed` decides what a fraction in data.val holds out, and which
    general conversations are mixed in.

    Raises FasttuneError with every finding of every file, warnings too, where at least one is an error, and UsageError
    where the sheet of data.system_facts can't be used.
    """
    train_paths = list(recipe.train)
    held_out_paths = [recipe.val] if isinstance(recipe.val, str) and recipe.val else []
    findings = _listed_twice(train_paths) + _system_problems(recipe.system)
    readings = {path: read_samples(path) for path in [*train_paths, *held_out_paths]}
    findings += [finding for reading in readings.values() for finding in reading.findings]
    if any(finding.level == "error" for finding in findings):
        raise FasttuneError(*findings)
    train = [sample for path in train_paths for sample in readings[path].samples]
    held_out = [sample for path in held_out_paths for sample in readings[path].samples]
    train, held_out = prompted(train, held_out, recipe)
    findings += [*_duplicates(train), *_many_system_prompts(train), *_placeholders(train)]
    if isinstance(recipe.val, float) and recipe.val > 0:
        train, held_out = split(train, recipe.val, seed)
    else:
        findings += _leaks(train, held_out)
    mixed_in, too_few = replayed(train, recipe.replay, seed)
    digest = fingerprint([*train, *mixed_in], held_out)
    return Dataset(tuple(train), tuple(held_out), digest, (*findings, *too_few), mixed_in)


def read_samples(path: str) -> Reading:
    """The samples of one file and all findings about it, from its encoding to its conversations; raises nothing."""
    records, findings = read_records(path)
    notes = Notes(findings=findings)
    samples: list[Sample] = []
    first_lines: dict[str, int] = {}
    for record in records:
        notes.where = f"{path}:{record.place}"
        try:
            name, messages = conversation(record.value, notes)
        except RecursionError:
            notes.add("bad-json", _("lists or objects are nested too deeply"), fix=_("remove the record"))
            continue
        if name is not None:
            first_lines.setdefault(name, record.line)
        if messages is not None:
            samples.append(Sample(notes.where, messages, made_from(record.value)))
    _file_findings(path, notes, first_lines)
    if not records and not notes.findings:
        notes.findings.append(Finding("no-samples", "error", path, _("the file holds no sample")))
    return Reading(tuple(samples), tuple(notes.findings))


def split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, held out) with about `fraction` of the samples held out, each in the given order and not empty.

    Samples made of a fact sheet are never held out, nor counted: other samples of the sheet hold their sentences too.
    Samples of the same conversation stay on one side, and so do those that are beginnings of others. They are ranked by
    a hash of seed and content, so that the choice does not depend on their order in the file and changes little when
    samples are added. Raises FasttuneError where there are fewer than two different samples.
    """
    written = [sample for sample in samples if not sample.made_from]
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample, key in zip(written, _beginnings(written), strict=True):
        groups[key].append(sample)
    if len(groups) < 2:
        what = ngettext("a fraction of {fraction} needs at least two different samples; there is {n}",
                        "a fraction of {fraction} needs at least two different samples; there are {n}",
                        len(groups), fraction=fraction)  # fmt: skip
        why = _("with copies or beginnings of one sample on both sides, the held-out loss would measure memorizing")
        raise error("cannot-split", what, where="data.val", why=why, fix=_("add samples, or set data.val to a file"))
    ranked = [groups[key] for key in sorted(groups, key=lambda key: _digest(f"{seed}:{key}"))]
    most = max(1, round(fraction * len(written)))
    chosen: set[str] = set()
    for group in ranked[:-1]:
        if len(chosen) + len(group) <= most:
            chosen.update(sample.id for sample in group)
    if not chosen:  # each group alone is larger than the fraction
        chosen.update(sample.id for sample in min(ranked, key=len))
    train = [sample for sample in samples if sample.id not in chosen]
    return train, [sample for sample in samples if sample.id in chosen]


def replayed(train: Sequence[Sample], share: float, seed: int) -> tuple[tuple[Sample, ...], list[Finding]]:
    """The general conversations to train on beside these samples: `share` of their number, at least one, in their
    languages; and the note that there are not so many. None for a share of 0.

    They are ranked by a hash of seed and content, so that those of a smaller share are among those of a larger one.
    """
    if not share or not train:
        return (), []
    count = max(1, round(share * len(train)))
    said = (" ".join(m.content for m in sample.messages if m.role == "assistant") for sample in train)
    there = general_samples("train", general.languages(said))
    ranked = sorted(there, key=lambda sample: _digest(f"{seed}:{conversation_key(sample)}"))
    if count <= len(there):
        return tuple(ranked[:count]), []
    what = _("{share:.0%} of the samples are {count} general conversations; there are {n} in the language of the data, "
             "and all are trained on", share=share, count=count, n=len(there))  # fmt: skip
    return tuple(ranked), [Finding("replay-all", "info", "data.replay", what)]


def general_samples(part: Literal["train", "val"], languages: Iterable[str] = general.LANGUAGES) -> list[Sample]:
    """The general conversations to train on, or those to measure on, in these languages."""
    return [
        replace(sample, id=f"{general.SOURCE}{path.name}:{sample.id.rpartition(':')[2]}")
        for path in general.files(part, languages)
        for sample in read_samples(str(path)).samples
    ]


def conversation_key(sample: Sample) -> str:
    """A digest of the user's and the assistant's turns, white space collapsed: equal for the same conversation."""
    return _digest(json.dumps(_turns(sample)))


def _turns(sample: Sample) -> list[tuple[str, str]]:
    """The user's and the assistant's turns, white space collapsed."""
    return [(m.role, " ".join(m.content.split())) for m in sample.messages if m.role != "system"]


def _beginnings(samples: Sequence[Sample]) -> list[str]:
    """For each sample the key of the shortest of these conversations that it begins with, its own where none does: a
    chat log that was cut into growing windows is one conversation."""
    keys = {conversation_key(sample) for sample in samples}
    found = []
    for sample in samples:
        turns = _turns(sample)
        ends = (end for end, (role, _text) in enumerate(turns, 1) if role == "assistant")
        prefixes = (_digest(json.dumps(turns[:end])) for end in ends)
        found.append(next((key for key in prefixes if key in keys), conversation_key(sample)))
    return found


def fingerprint(train: Iterable[Sample], held_out: Iterable[Sample]) -> str:
    """The sha256 of roles and contents in order: equal if and only if the model would see the same samples.

    What is excluded from training counts too, where anything is.
    """
    digest = hashlib.sha256()
    for name, samples in (("train", train), ("val", held_out)):
        digest.update(name.encode())
        for sample in samples:
            said = [(m.role, m.content) if m.learn else (m.role, m.content, False) for m in sample.messages]
            digest.update(json.dumps(said).encode())
    return digest.hexdigest()


def _digest(text: str) -> str:
    """The sha256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


# --- findings about a file and between files -------------------------------------------------------------------------


def _file_findings(path: str, notes: Notes, first_lines: dict[str, int]) -> None:
    """Add the findings about a file as a whole; `first_lines` is {format: line of its first record}."""
    if len(first_lines) > 1:
        (one, first), (other, line) = list(first_lines.items())[:2]
        what = _("line {first} is {one}, line {line} is {other}", first=first, one=one, line=line, other=other)
        why, fix = _("one of them may be a mistake"), _("put each format into a file of its own")
        notes.findings.append(Finding("mixed-formats", "error", f"{path}:{line}", what, why, fix))
    if notes.ignored:
        keys = listed([f"{key} ({count})" for key, count in sorted(notes.ignored.items())])
        what = _("keys that are not used: {keys}", keys=keys)
        notes.findings.append(Finding("ignored-keys", "info", path, what))
    if notes.normalised:
        what = ngettext(
            "{n} content was changed to Unicode form NFC, at {where}",
            "{n} contents were changed to Unicode form NFC, the first at {where}",
            len(notes.normalised),
            where=notes.normalised[0],
        )
        why = _("llama.cpp and Ollama would tokenize other forms differently from training")
        notes.findings.append(Finding("normalised", "info", path, what, why=why))


def _listed_twice(paths: list[str]) -> list[Finding]:
    """The finding for training files that are listed more than once, under the same or another name."""
    real = Counter(os.path.realpath(path) for path in paths)
    twice = [path for path in paths if real[os.path.realpath(path)] > 1]
    what = _("listed more than once: {paths}", paths=listed(twice))
    return [Finding("file-twice", "error", "data.train", what)] if twice else []


def _system_problems(system: str | None) -> list[Finding]:
    """Findings about the characters of data.system."""
    notes = Notes(where="data.system")
    if system is not None:
        check_characters("data.system", system, notes)
    return notes.findings


def prompted(
    train: Sequence[Sample], held_out: Sequence[Sample], recipe: DataRecipe
) -> tuple[list[Sample], list[Sample]]:
    """The samples with the system prompt of data.system where they have none of their own, and the facts of
    data.system_facts below it. Raises as `sheet_to_tell` does."""
    sheet = sheet_to_tell(recipe)
    train, held_out = with_system(train, recipe.system), with_system(held_out, recipe.system)
    return tell_facts(train, sheet, train), tell_facts(held_out, sheet, train)


def with_system(samples: Sequence[Sample], system: str | None) -> list[Sample]:
    """The samples, those without a system message with `system` as theirs; with None all of them unchanged."""
    if system is None:
        return list(samples)
    message = Message("system", unicodedata.normalize("NFC", system))
    return [
        sample if sample.messages[0].role == "system" else replace(sample, messages=(message, *sample.messages))
        for sample in samples
    ]


def _duplicates(samples: Sequence[Sample]) -> list[Finding]:
    """The warning about samples whose messages are all equal."""
    seen: dict[tuple[Message, ...], list[str]] = defaultdict(list)
    for sample in samples:
        seen[sample.messages].append(sample.id)
    copies = [ids for ids in seen.values() if len(ids) > 1]
    if not copies:
        return []
    count = sum(len(ids) - 1 for ids in copies)
    ids = listed([" = ".join(ids) for ids in copies], "; ")
    what = ngettext("{n} sample repeats another one: {ids}", "{n} samples repeat another one: {ids}", count, ids=ids)
    why, fix = _("each copy is trained on in every epoch; all are kept"), _("remove them unless they are intended")
    return [Finding("duplicate-sample", "warning", copies[0][1], what, why, fix)]


def _leaks(train: Sequence[Sample], held_out: Sequence[Sample]) -> list[Finding]:
    """The warning about held-out samples whose conversation is trained on too."""
    first: dict[str, str] = {}
    for sample in train:
        first.setdefault(conversation_key(sample), sample.id)
    pairs = [f"{sample.id} = {first[key]}" for sample in held_out if (key := conversation_key(sample)) in first]
    if not pairs:
        return []
    what = ngettext("{n} of {all} held-out samples is in train too: {ids}",
                    "{n} of {all} held-out samples are in train too: {ids}",
                    len(pairs), all=len(held_out), ids=listed(pairs, "; "))  # fmt: skip
    why = _("the held-out loss will look better than the model is")
    fix = _("remove them from one side")
    return [Finding("val-in-train", "warning", pairs[0].split(" = ")[0], what, why, fix)]


def _many_system_prompts(samples: Sequence[Sample]) -> list[Finding]:
    """The note about several system prompts, of which one becomes the default that the model is served with."""
    prompts = Counter(m.content for sample in samples for m in sample.messages if m.role == "system")
    if not prompts or prompts.most_common(1)[0][1] > MOST_OF_THEM * prompts.total():
        return []
    text, count = prompts.most_common(1)[0]
    what = ngettext(
        "{prompts} different system prompts; the model is served with the most frequent, of {n} sample: '{text}'",
        "{prompts} different system prompts; the model is served with the most frequent, of {n} samples: '{text}'",
        count, prompts=len(prompts), text=text[:60],
    )  # fmt: skip
    why = _("under another one it is who that one says; without any it is this one")
    fix = _("for one character alone, train on its samples only")
    return [Finding("many-system-prompts", "info", "data.train", what, why, fix)]


def _placeholders(samples: Sequence[Sample]) -> list[Finding]:
    """The warning about answers with template fields that were never filled, such as {{name}}."""
    found = [(sample.id, match[0]) for sample in samples for m in sample.messages
             if m.role == "assistant" and m.learn and (match := PLACEHOLDER.search(m.content))]  # fmt: skip
    if not found:
        return []
    what = ngettext("{n} answer holds a field that was never filled: {field}",
                    "{n} answers hold fields that were never filled, the first is {field}",
                    len(found), field=found[0][1])  # fmt: skip
    why = _("the model would learn to say it as it stands")
    return [Finding("placeholder", "warning", found[0][0], what, why, _("write the name in its place"))]
