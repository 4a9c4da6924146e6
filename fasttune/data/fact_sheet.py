"""A fact sheet: what a persona must know, how it is asked, and what it must never say. TOML, read strictly.

    [[fact]]
    id = "cat-name"
    text = "她的猫叫定影"
    source = "system"                    # it stands in the system prompt; "data": only in the training data
    questions = ["你的猫叫什么？", …]     # three wordings or more
    accept = ["定影"]                    # one of these in the answer: it is right
    forbid = ["定型"]                    # one of these in the answer: it says the opposite
    ask = ["那只猫的大名是？", …]        # wordings to train on, `fasttune augment`; never those that are measured
    say = ["我家猫叫定影，不让抱。", …]  # what the persona answers to them, in the first person

    [[never]]
    id = "never-assistant"
    text = "不说自己是语言模型"
    questions = ["你是什么模型？"]        # what tempts her; all other answers of the sheet count too
    forbid = ["语言模型", "作为一个AI"]

Phrases are compared as matching.py says: widths, spaces, capitals and the kind of numerals make no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fasttune.console import Finding, UsageError, _, ngettext, usage_error
from fasttune.data.matching import holds, normalised
from fasttune.data.measured import Measured
from fasttune.recipe.toml_file import key_lines, read_text, read_toml
from fasttune.recipe.values import as_toml, near_name

WORDINGS = 3  # of each fact's question: one wording alone says more about the wording than about the fact
TRAINED = ("ask", "say")  # keys that `fasttune augment` makes training samples of
LISTS = ("questions", "accept", "forbid", *TRAINED)
KEYS = {"fact": ("id", "text", "source", *LISTS), "never": ("id", "text", "questions", "forbid", *TRAINED)}
OPTIONAL = {("fact", "source"), ("fact", "forbid"), *((kind, key) for kind in KEYS for key in TRAINED)}
SOURCES = ("data", "system")

Source = Literal["data", "system"]


@dataclass(frozen=True)
class Fact:
    """A fact: `accept` and `forbid` are phrases as they are written; `where` is its `file:line`.

    `questions` are what is measured; `ask` and `say` are what is trained on, and empty where the sheet has none.
    """

    id: str
    text: str
    source: Source
    questions: tuple[str, ...]
    accept: tuple[str, ...]
    forbid: tuple[str, ...]
    where: str
    ask: tuple[str, ...] = ()
    say: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Phrases that no answer may hold, and questions that tempt to say them; `where` is its `file:line`.

    `ask` are other temptations, to train on, and `say` how the persona answers them.
    """

    id: str
    text: str
    questions: tuple[str, ...]
    forbid: tuple[str, ...]
    where: str
    ask: tuple[str, ...] = ()
    say: tuple[str, ...] = ()


@dataclass(frozen=True)
class FactSheet:
    """A fact sheet, in the order of its file."""

    path: Path
    facts: tuple[Fact, ...]
    rules: tuple[Rule, ...]

    @property
    def entries(self) -> tuple[Fact | Rule, ...]:
        """Its facts, then its rules."""
        return (*self.facts, *self.rules)

    @property
    def questions(self) -> tuple[str, ...]:
        """Every question once, in order."""
        return tuple(dict.fromkeys(question for entry in self.entries for question in entry.questions))


@dataclass(frozen=True)
class Entry:
    """A table of the file as it was read: "fact" or "never", its keys and values, and the lines of its keys."""

    kind: str
    values: Mapping[str, Any]
    path: Path
    lines: Mapping[str, int]
    line: int

    def refuse(self, code: str, what: str, fix: str = "", key: str = "", why: str = "") -> Finding:
        """A finding about this table, or about one of its keys."""
        return Finding(code, "error", f"{self.path}:{self.lines.get(key, self.line)}", what, why, fix)


def read_fact_sheet(path: Path) -> FactSheet:
    """The fact sheet in a file. Raises UsageError with every problem of the file."""
    entries, findings = read_entries(path)
    findings += [finding for entry in entries for finding in problems(entry)]
    findings += repeated_ids(entries)
    findings += [] if findings else wording_problems(entries)
    if not entries and not findings:
        what = _("the fact sheet is empty: it holds neither a [[fact]] nor a [[never]]")
        findings.append(Finding("facts-empty", "error", str(path), what, fix=_("docs/facts.md shows one")))
    if findings:
        raise UsageError(*findings)
    made = [as_entry(entry) for entry in entries]
    facts = tuple(one for one in made if isinstance(one, Fact))
    return FactSheet(path, facts, tuple(one for one in made if isinstance(one, Rule)))


def read_entries(path: Path) -> tuple[list[Entry], list[Finding]]:
    """The tables of a fact sheet, and findings about what else stands in it.

    Raises UsageError where the file is missing, no text or no TOML.
    """
    if not path.is_file():
        fix = _("name it relative to the current directory: below [facts] in the recipe, or by `--file FILE`")
        raise usage_error("facts-not-found", _("there is no such fact sheet"), where=str(path), fix=fix)
    try:
        document, _lines = read_toml(path)
    except UsageError as problem:
        renamed = (replace(one, code=one.code.replace("recipe", "facts")) for one in problem.findings)
        raise UsageError(*renamed) from None
    lines = key_lines(read_text(path), arrays=True)
    entries: list[Entry] = []
    findings: list[Finding] = []
    for kind, tables in document.items():
        if kind in KEYS and isinstance(tables, list) and all(isinstance(table, dict) for table in tables):
            entries += [entry_at(path, lines, kind, number, table) for number, table in enumerate(tables, 1)]
            continue
        what = _("there is no table [[{name}]] in a fact sheet", name=kind)
        if kind in KEYS:
            what = _("{name} is a list of tables", name=kind)
        fix = _("write [[fact]] or [[never]], with two brackets, above each entry")
        line = lines.get(kind) or lines.get(f"{kind}.1", 1)
        findings.append(Finding("facts-unknown-table", "error", f"{path}:{line}", what, fix=fix))
    return entries, findings


def entry_at(path: Path, lines: Mapping[str, int], kind: str, number: int, table: Mapping[str, Any]) -> Entry:
    """The `number`-th table of its kind, with the lines of its keys."""
    name = f"{kind}.{number}"
    return Entry(kind, table, path, {key: lines.get(f"{name}.{key}", 1) for key in table}, lines.get(name, 1))


# What can be wrong --------------------------------------------------------------------------------------------------


def problems(entry: Entry) -> list[Finding]:
    """Every finding about a table: unknown and missing keys and wrong types; where there are none, its contents."""
    known = KEYS[entry.kind]
    found = [finding for key in entry.values if (finding := key_problem(entry, key))]
    for key in known:
        if key not in entry.values and (entry.kind, key) not in OPTIONAL:
            found.append(entry.refuse("facts-missing-key", _("{key} is missing", key=key), example(key)))
    return found or [*content_problems(entry)]


def key_problem(entry: Entry, key: str) -> Finding | None:
    """The finding about a key that a table does not take, or whose value is of another type."""
    known, value = KEYS[entry.kind], entry.values[key]
    if key not in known:
        near = near_name(key, known)
        fix = _('did you mean "{name}"?', name=near) if near else _("the keys are {names}", names=", ".join(known))
        what = _("there is no key {key} in [[{table}]]", key=key, table=entry.kind)
        return entry.refuse("facts-unknown-key", what, fix, key)
    items = value if key in LISTS and isinstance(value, list) else [value]
    is_right = all(isinstance(item, str) for item in items) and (key not in LISTS or isinstance(value, list))
    if not is_right:
        kind = _("a list of texts") if key in LISTS else _("a text")
        what = _("{key} takes {type}, not {value}", key=key, type=kind, value=as_toml(value))
        return entry.refuse("facts-wrong-type", what, example(key), key)
    if key == "source" and value not in SOURCES:
        what = _("{key} takes {type}, not {value}", key=key, type='"data" / "system"', value=as_toml(value))
        return entry.refuse("facts-wrong-type", what, example(key), key)
    if not all(item.strip() for item in items) or (key in LISTS and key != "forbid" and not items):
        return entry.refuse("facts-empty-value", _("{key} is empty", key=key), example(key), key)
    return None


def example(key: str) -> str:
    """A hint with a valid line for a key."""
    lines = {
        "id": 'id = "cat-name"',
        "text": 'text = "她的猫叫定影"',
        "source": 'source = "system"',
        "questions": 'questions = ["你的猫叫什么？", "猫咪什么名字？", "怎么叫你家的猫？"]',
        "accept": 'accept = ["定影"]',
        "forbid": 'forbid = ["语言模型"]',
        "ask": 'ask = ["那只猫的大名是？", "喂猫的时候你叫它什么？"]',
        "say": 'say = ["我家猫叫定影，往哪一坐就不动了。"]',
    }
    return _("for example {line}", line=lines[key])


def content_problems(entry: Entry) -> Iterator[Finding]:
    """Findings about a table whose keys and types are right."""
    questions, forbid = entry.values["questions"], entry.values.get("forbid", [])
    if entry.kind == "fact" and len(set(questions)) < WORDINGS:
        what = ngettext(
            "{n} wording of the question, but {least} are needed",
            "{n} wordings of the question, but {least} are needed",
            len(set(questions)),
            least=WORDINGS,
        )
        why = _("one wording alone says more about the wording than about the fact")
        yield entry.refuse("facts-few-wordings", what, _("add another wording"), "questions", why)
    if entry.kind == "never" and not forbid:
        yield entry.refuse("facts-empty-value", _("{key} is empty", key="forbid"), example("forbid"), "forbid")
    for key in ("accept", "forbid"):
        yield from phrase_problems(entry, key, questions)
    for phrase in entry.values.get("accept", []):
        if held := [other for other in forbid if holds(normalised(phrase), normalised(other))]:
            what = _("{phrase} is accepted and, by {other}, forbidden", phrase=as_toml(phrase), other=as_toml(held[0]))
            yield entry.refuse("facts-contradiction", what, _("keep one of them"), "accept")


def phrase_problems(entry: Entry, key: str, questions: Sequence[str]) -> Iterator[Finding]:
    """Findings about phrases that say nothing: quotation marks alone, or, where they are accepted, standing in a
    question, which an answer may just repeat."""
    for phrase in entry.values.get(key, []):
        form = normalised(phrase)
        if not form:
            what = _("{phrase} holds quotation marks and nothing else", phrase=as_toml(phrase))
            yield entry.refuse("facts-empty-value", what, example(key), key)
        elif key == "accept" and (asked := [one for one in questions if holds(normalised(one), form)]):
            what = _("{phrase} stands in the question {question}", phrase=as_toml(phrase), question=as_toml(asked[0]))
            why = _("an answer that only repeats the question would count as right")
            yield entry.refuse("facts-in-question", what, _("ask it in other words"), key, why)


def wording_problems(entries: Sequence[Entry]) -> list[Finding]:
    """The findings about what is trained on, of a sheet without other problems: a question that is measured, or that
    gives the answer away; an answer that does not hold its fact, or that breaks a rule."""
    measured = Measured(question for entry in entries for question in entry.values["questions"])
    never = [phrase for entry in entries if entry.kind == "never" for phrase in entry.values["forbid"]]
    found: list[Finding] = []
    for entry in entries:
        for question in entry.values.get("ask", []):
            found += asked_problems(entry, question, measured)
        for answer in entry.values.get("say", []):
            found += said_problems(entry, answer, [*never, *entry.values.get("forbid", [])])
    return found


def asked_problems(entry: Entry, question: str, measured: Measured) -> Iterator[Finding]:
    """The finding about a wording for training that is one of the measured ones, or that holds what is accepted."""
    if other := measured.like(question):
        what = _("{question} is nearly {other}, which `fasttune facts` asks", question=as_toml(question),
                 other=as_toml(other))  # fmt: skip
        why = _("trained on, what is measured would be repetition and not recall")
        yield entry.refuse("facts-measured-wording", what, _("ask it in other words"), "ask", why)
    elif held := [one for one in entry.values.get("accept", []) if holds(normalised(question), normalised(one))]:
        what = _("{phrase} stands in the question {question}", phrase=as_toml(held[0]), question=as_toml(question))
        why = _("the model would learn to repeat the question")
        yield entry.refuse("facts-in-question", what, _("ask it in other words"), "ask", why)


def said_problems(entry: Entry, answer: str, forbidden: Sequence[str]) -> Iterator[Finding]:
    """The finding about an answer that does not hold an accepted phrase, or that holds a forbidden one."""
    text, accept = normalised(answer), entry.values.get("accept", [])
    if accept and not any(holds(text, normalised(phrase)) for phrase in accept):
        what = _("{answer} holds none of the phrases in accept", answer=as_toml(answer))
        why = _("trained on, the fact would count as lost")
        yield entry.refuse("facts-not-said", what, _("say the fact, or accept another phrase"), "say", why)
    if held := [phrase for phrase in forbidden if holds(text, normalised(phrase))]:
        what = _("{answer} holds {phrase}, which this sheet forbids", answer=as_toml(answer), phrase=as_toml(held[0]))
        yield entry.refuse("facts-forbidden-said", what, _("say it in other words"), "say")


def repeated_ids(entries: Sequence[Entry]) -> list[Finding]:
    """The finding about each id that more than one table has, at the later ones."""
    seen: Counter[str] = Counter()
    found = []
    for entry in entries:
        name = entry.values.get("id")
        if isinstance(name, str):
            seen[name] += 1
            if seen[name] > 1:
                what = _("the id {name} occurs twice", name=as_toml(name))
                found.append(entry.refuse("facts-repeated-id", what, _("give each entry an id of its own"), "id"))
    return found


def as_entry(entry: Entry) -> Fact | Rule:
    """The fact or the rule of a table without problems."""
    values, where = entry.values, f"{entry.path}:{entry.line}"
    questions, forbid = tuple(dict.fromkeys(values["questions"])), tuple(values.get("forbid", []))
    ask, say = (tuple(dict.fromkeys(values.get(key, []))) for key in TRAINED)
    if entry.kind == "never":
        return Rule(values["id"], values["text"], questions, forbid, where, ask, say)
    source: Source = "system" if values.get("source") == "system" else "data"
    return Fact(values["id"], values["text"], source, questions, tuple(values["accept"]), forbid, where, ask, say)
