"""Which facts of a fact sheet a trained model knows, with and without its system prompt, and which its base knows.

    arm            model      system prompt
    base           base       none
    base+system    base       the run's
    tuned          adapter    none
    tuned+system   adapter    the run's: what is served
    tuned+facts    adapter    the run's and the facts of the sheet: what is served with export.prompt = "facts"

Every wording is answered greedily, and phrases are looked for in the answers; nobody judges. A fact is *contradicted*
where one of its answers holds a forbidden phrase, *kept* where more than half of them hold an accepted one, and *lost*
otherwise. A rule is *broken* where any answer of the whole sheet holds one of its phrases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.analysis import sources
from fasttune.analysis.answers import LoadedModel, Prompt, Source, TorchSource, ask
from fasttune.command import command_line
from fasttune.console import Finding, _, ngettext, usage_error
from fasttune.data.fact_prompt import with_facts
from fasttune.data.fact_sheet import Fact, FactSheet, Rule, read_fact_sheet
from fasttune.data.matching import holds, normalised
from fasttune.export.llama import Sampling
from fasttune.files import file_sha256
from fasttune.runs import documents, epochs, store
from fasttune.runs.adapters import NamedAdapter
from fasttune.runs.documents import PlanDocument, Scores
from fasttune.runs.outcomes import ArmFacts, FactResult, FactScores, FactState, RuleResult
from fasttune.runs.store import Run

SERVED, WITH_FACTS = "tuned+system", "tuned+facts"
ANSWER_TOKENS = 64  # by default: a fact is said early or not at all
Answers = Mapping[str, Mapping[str, str]]  # {arm: {question: answer}}


def facts(
    run: Run, file: Path | None, max_new_tokens: int, other: NamedAdapter | None = None, prompt: str | None = None
) -> FactScores:
    """Ask the facts of a sheet, by default the recipe's, keep what came of it in scores.json and return it; of an
    adapter `other` than the one that the run serves, or with another `prompt` ("facts") than its own, nothing is kept.

    Raises UsageError where the run was trained with the facts in its prompt and they are asked for there, FasttuneError
    where run, base or sheet can't be used, or another process uses the run before anything is
    asked.
    """
    sheet, plan = read_fact_sheet(file or recipe_sheet(run)), documents.read_plan(run)
    if prompt == "facts" and tells_facts(plan):
        what = _("the facts stand in the trained system prompt already (data.system_facts)")
        raise usage_error("contradiction", what, where=run.id, fix=_("leave out --prompt"))
    store.require_unused(run)
    adapter = other.folder if other else sources.finished_adapter(run)
    loaded = sources.loaded_model(run, adapter)
    is_tried = prompt == "facts" and plan.with_facts is None
    served = with_facts(plan.system, sheet) if is_tried else plan.with_facts
    answers = ask_arms(loaded, (plan.system, served), sheet, Sampling(max_new_tokens), other.name if other else run.id)
    loaded.release()
    scores = replace(score(sheet, answers, max_new_tokens), adapter=epochs.weights_digest(adapter))
    if other or is_tried:
        return scores
    store.keep(run, lambda: write_scores(run, scores))
    return scores


def write_scores(run: Run, scores: FactScores) -> None:
    """Put what came of a sheet into a run's scores.json."""
    before = documents.read_scores(run) if run.scores.is_file() else Scores(())
    documents.write(run.scores, replace(before, facts=scores))


def recipe_sheet(run: Run) -> Path:
    """The fact sheet that a run's recipe names, to ask or else to tell. Raises UsageError where it names none."""
    values = documents.read_plan(run).values
    name = values.get("facts.file") or values.get("data.system_facts")
    if name:
        return Path(name)
    fix = _('write [facts] and below it file = "data/mine/facts.toml" in the recipe, or name a sheet by `--file FILE`')
    raise usage_error("no-facts", _("the recipe of this run names no fact sheet"), where=run.id, fix=fix)


def tells_facts(plan: PlanDocument) -> bool:
    """Whether the facts of a sheet stand in the system prompt that a run was trained with."""
    return bool(plan.values.get("data.system_facts"))


def ask_arms(
    loaded: LoadedModel, prompts: tuple[str | None, str | None], sheet: FactSheet, sampling: Sampling, name: str
) -> Answers:
    """Every question of a sheet, answered by each arm; `prompts` are the trained system prompt and the one with facts,
    None for none."""
    system, served = prompts
    found: dict[str, Mapping[str, str]] = {}
    for arm, model, adapter in (("base", _("base"), False), ("tuned", name, True)):
        found[arm] = ask_sheet(TorchSource(model, loaded, adapter), None, sheet, sampling)
        if system is not None:
            source = TorchSource(_("{model} + system prompt", model=model), loaded, adapter)
            found[f"{arm}+system"] = ask_sheet(source, system, sheet, sampling)
    if served is not None:
        source = TorchSource(_("{model} + facts in the prompt", model=name), loaded, adapter=True)
        found[WITH_FACTS] = ask_sheet(source, served, sheet, sampling)
    return found


def ask_sheet(source: Source, system: str | None, sheet: FactSheet, sampling: Sampling) -> Mapping[str, str]:
    """{question: answer} of every question of a sheet."""
    texts = ask(source, [Prompt(question, system) for question in sheet.questions], sampling)
    return dict(zip(sheet.questions, texts, strict=True))


# Scores -------------------------------------------------------------------------------------------------------------


def score(sheet: FactSheet, answers: Answers, max_new_tokens: int) -> FactScores:
    """What the answers to a sheet come to."""
    known = tuple(fact_result(fact, answers) for fact in sheet.facts)
    rules = tuple(rule_result(rule, answers) for rule in sheet.rules)
    arms = {arm: arm_facts(arm, sheet.facts, known, rules) for arm in answers}
    return FactScores(str(sheet.path), file_sha256(sheet.path), max_new_tokens, arms, known, rules)


def fact_result(fact: Fact, answers: Answers) -> FactResult:
    """A fact with its state by arm."""
    given = {arm: tuple(texts[question] for question in fact.questions) for arm, texts in answers.items()}
    states = {arm: state(fact, texts) for arm, texts in given.items()}
    return FactResult(fact.id, fact.text, fact.source, fact.questions, states, given)


def state(fact: Fact, answers: Sequence[str]) -> FactState:
    """What the answers to a fact's wordings come to."""
    if any(holds_any(answer, fact.forbid) for answer in answers):
        return "contradicted"
    return "kept" if 2 * right(fact, answers) > len(answers) else "lost"


def right(fact: Fact, answers: Sequence[str]) -> int:
    """How many of the answers hold an accepted phrase and no forbidden one."""
    return sum(holds_any(answer, fact.accept) and not holds_any(answer, fact.forbid) for answer in answers)


def holds_any(answer: str, phrases: Sequence[str]) -> bool:
    """Whether an answer holds one of the phrases."""
    text = normalised(answer)
    return any(holds(text, normalised(phrase)) for phrase in phrases)


def rule_result(rule: Rule, answers: Answers) -> RuleResult:
    """A rule with the answers that break it, by arm."""
    broken = {
        arm: tuple(dict.fromkeys(answer for answer in texts.values() if holds_any(answer, rule.forbid)))
        for arm, texts in answers.items()
    }
    return RuleResult(rule.id, rule.text, broken)


def arm_facts(arm: str, sheet: Sequence[Fact], known: Sequence[FactResult], rules: Sequence[RuleResult]) -> ArmFacts:
    """The numbers of one arm."""
    states = [result.states[arm] for result in known]
    asked = sum(len(result.questions) for result in known)
    hits = sum(right(fact, result.answers[arm]) for fact, result in zip(sheet, known, strict=True))
    broken = sum(bool(rule.broken[arm]) for rule in rules)
    kept, lost, contradicted = (states.count(one) for one in ("kept", "lost", "contradicted"))
    return ArmFacts(kept, lost, contradicted, hits / asked if asked else 0.0, broken)


# What is worth saying -----------------------------------------------------------------------------------------------


def served_arm(scores: FactScores) -> str:
    """The arm of what is served: the trained model, with the system prompt that it is served with where it has one."""
    return next((arm for arm in (WITH_FACTS, SERVED) if arm in scores.arms), "tuned")


def findings(run: Run, scores: FactScores, at_least: float | None = None) -> list[Finding]:
    """What is worth saying about a run's facts; an error where the served model keeps fewer than a share `at_least`."""
    arm, system = served_arm(scores), documents.read_plan(run).system
    found = [*not_kept(run, scores, arm), *broken_rules(run, scores, arm), *not_in_prompt(scores, system)]
    total, kept = len(scores.facts), scores.arms[arm].kept
    if at_least is not None and kept < at_least * total:
        what = _("{kept} of {total} facts are kept, fewer than {share:.0%}", kept=kept, total=total, share=at_least)
        found.append(Finding("facts-below", "error", run.id, what))
    return found


def not_kept(run: Run, scores: FactScores, arm: str) -> list[Finding]:
    """The warning about facts that the served model contradicts, and the one about those that it has lost."""
    found = []
    names = {
        state: [fact.id for fact in scores.facts if fact.states[arm] == state] for state in ("contradicted", "lost")
    }
    if wrong := names["contradicted"]:
        what = ngettext("{n} of {total} facts is contradicted: {ids}", "{n} of {total} facts are contradicted: {ids}",
                        len(wrong), total=len(scores.facts), ids=", ".join(wrong))  # fmt: skip
        found.append(Finding("facts-contradicted", "warning", run.id, what, fix=advice(run, scores, wrong)))
    if lost := names["lost"]:
        what = ngettext("{n} of {total} facts is lost: {ids}", "{n} of {total} facts are lost: {ids}",
                        len(lost), total=len(scores.facts), ids=", ".join(lost))  # fmt: skip
        found.append(Finding("facts-lost", "warning", run.id, what, fix=advice(run, scores, lost)))
    return found


def advice(run: Run, scores: FactScores, ids: Sequence[str]) -> str:
    """What to do about facts that are not kept, by where they stand."""
    in_prompt = {"system", "data"} if tells_facts(documents.read_plan(run)) else {"system"}
    if any(fact.source not in in_prompt for fact in scores.facts if fact.id in ids):
        return _(
            "make training samples of them, `{command}`, and train with the facts in the system prompt, "
            'data.system_facts = "{sheet}"; or take a larger base',
            command=command_line(["augment", scores.sheet]),
            sheet=scores.sheet,
        )
    return _("they stand in the system prompt: train on more samples that use them, or take a larger base")


def broken_rules(run: Run, scores: FactScores, arm: str) -> list[Finding]:
    """The warning about each rule that the served model breaks, with the first answer that does."""
    found = []
    for rule in scores.rules:
        if said := rule.broken[arm]:
            what = ngettext(
                "{rule}: {n} answer breaks it: {answer}",
                "{rule}: {n} answers break it, the first is {answer}",
                len(said),
                rule=rule.text,
                answer=said[0][:80],
            )
            found.append(Finding("rule-broken", "warning", f"{run.id}: {rule.id}", what))
    return found


def not_in_prompt(scores: FactScores, system: str | None) -> list[Finding]:
    """The note about facts that the sheet expects in the system prompt, of a run that has none."""
    ids = [fact.id for fact in scores.facts if fact.source == "system"]
    if system is not None or not ids:
        return []
    what = _("the sheet expects facts in the system prompt ({ids}), but this run has none", ids=", ".join(ids))
    return [Finding("no-system-prompt", "info", scores.sheet, what)]
