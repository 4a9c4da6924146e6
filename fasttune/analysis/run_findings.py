"""What the files of a run of ours say besides its curves: data, template and system prompt, exports, answers,
rank, base."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fasttune.analysis import answer_faults
from fasttune.analysis.curve_findings import wants_fewer_epochs, wants_more_epochs
from fasttune.analysis.remedies import RunRemedies, export_command
from fasttune.analysis.template_findings import modelfile, template_findings
from fasttune.analysis.training_facts import Training
from fasttune.console import FasttuneError, Finding, _, ngettext
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.recipe.load import load_recipe
from fasttune.runs import documents, epochs, judgement, store, summary
from fasttune.runs.bands import BANDS
from fasttune.runs.documents import ArtifactDocument, PlanDocument
from fasttune.runs.outcomes import ExportFigures
from fasttune.runs.run_files import RunFiles
from fasttune.runs.seams import LEARNED, RELEARNED
from fasttune.runs.store import Run

FEW_SAMPLES = BANDS[1][0]  # 50: with fewer, the users' table asks for more samples first
FAR = 0.5  # of the KL limit of an export: a file beyond this share of it is far off, though it was not refused
LARGE_RANK, SMALL_RANK = 32, 4  # a rank from which on few samples over-fit, and one below which little can be learned
SMALL_BASE = re.compile(r"(\d+(?:\.\d+)?)b\b", re.IGNORECASE)
SYSTEM = re.compile(r'^SYSTEM """(.*?)"""$', re.MULTILINE | re.DOTALL)
NOT_TO_CONTINUE = (judgement.OVER_FITTING, judgement.DIVERGED, judgement.NOTHING_LEARNED)
MOST_SHOWN = 3  # answers that a finding quotes


def findings(run: Run, plan: PlanDocument, training: Training, helps: RunRemedies) -> list[Finding]:
    """Everything that the files of a run say; data that was changed or moved since is named and not guessed."""
    dataset, about_data = read_data(run, plan)
    found = [
        *about_data,
        *began_again(run, plan),
        *template_findings(run, plan),
        *prompts(run, plan, dataset, helps),
        *exports(run, helps),
        *picked_before_best(run, training, helps),
        *few_samples(run, plan, training, helps),
    ]
    found += about_answers(run, dataset, training, helps)
    return [*found, *rank(run, training), *small_base(run, training, found, helps)]


def read_data(run: Run, plan: PlanDocument) -> tuple[Dataset | None, list[Finding]]:
    """The data of a run as it is now; None with a remark where it can't be read any more."""
    try:
        recipe = load_recipe(run.recipe, documents.recorded_overrides(run))
        dataset = load_dataset(recipe.data, recipe.train.seed)
    except FasttuneError as problem:
        what = _("its data can't be read any more ({problem}): answers are not compared with it",
                 problem=problem.findings[0].what)  # fmt: skip
        return None, [Finding("data-not-read", "info", run.id, what, fix=problem.findings[0].fix)]
    if dataset.fingerprint != plan.data_fingerprint:
        what = _("its data was changed since it was trained")
        return dataset, [Finding("data-changed", "info", run.id, what)]
    return dataset, []


# Template and system prompt -----------------------------------------------------------------------------------------


def typed(command: str) -> str:
    """A command as a finding's fix; "" where there is none."""
    return f"`{command}`" if command else ""


def prompts(run: Run, plan: PlanDocument, dataset: Dataset | None, helps: RunRemedies) -> list[Finding]:
    """System prompts that differ between data, run and export."""
    served = plan.served_system
    found = [("exports/" + name, system, served) for name, system in exported_systems(run)]
    if dataset is not None:
        texts = Counter(m.content for sample in dataset.train for m in sample.messages if m.role == "system")
        found.append((_("its data"), texts.most_common(1)[0][0] if texts else None, plan.system))
    mismatched = [name for name, system, right in found if (system or "").strip() != (right or "").strip()
                  and not (served is None and name.startswith("exports/"))]  # fmt: skip
    if not mismatched:
        return []
    what = _("the system prompt of {places} is not the one it was trained with", places=", ".join(mismatched))
    why = _("it answers in another role than it was taught; nothing else can be judged before this is mended")
    in_exports = any(name.startswith("exports/") for name in mismatched)
    command = export_command(run) if in_exports else helps.anew("")
    return [Finding("system-prompt-mismatch", "error", run.id, what, why, typed(command))]


def exported_systems(run: Run) -> list[tuple[str, str | None]]:
    """(file, system prompt) of each export and of the Modelfile."""
    found: list[tuple[str, str | None]] = [(name, document.system) for name, document in RunFiles(run).artifacts]
    if text := modelfile(run):
        match = SYSTEM.search(text)
        found.append(("Modelfile", match[1] if match else None))
    return found


def exports(run: Run, helps: RunRemedies) -> list[Finding]:
    """Files that were refused or never made, were not measured, or are far from the trained model."""
    found = []
    if missing := RunFiles(run).missing_exports:
        what = _("{types} was not exported, or refused", types=", ".join(missing))
        why = _("a file that does not answer as the trained model is refused; the command says why")
        found.append(Finding("export-missing", "warning", run.id, what, why, typed(helps.make_files)))
    for name, document in RunFiles(run).artifacts:
        found += far_off(run, name, document)
    return found


def picked_before_best(run: Run, training: Training, helps: RunRemedies) -> list[Finding]:
    """An epoch is picked that comes before the one with the lowest held-out loss."""
    picked, judged = epochs.picked_epoch(run), training.judged
    if picked is None or judged is None or judged.reason != "before-best":
        return []
    best = judgement.best_evaluation(training.curve.evaluations)
    what = _("epoch {epoch} is picked, and the held-out loss was lower after a later one, {best:.3f} at step {step}",
             epoch=epochs.epoch_word(picked.epoch), best=best.loss, step=best.step)  # fmt: skip
    return [Finding("picked-before-best", "warning", run.id, what, "", typed(helps.pick_best))]


def far_off(run: Run, name: str, document: ArtifactDocument) -> list[Finding]:
    """A file that is far from the trained model, or was never compared with it."""
    where = f"{run.id}: exports/{name}"
    if "unchecked" in document.checks:
        what = _("it was never compared with the trained model: {reason}", reason=document.checks["unchecked"])
        return [Finding("export-unchecked", "info", where, what, "", f"`{export_command(run)}`")]
    if document.figures is not None:
        return keeps_little(where, document.figures, run)
    logits = document.checks.get("logits", {})  # of a file that was exported before what it keeps was measured
    kl, kl_limit = logits.get("kl_mean", 0.0), logits.get("kl_limit", 1.0)
    if kl <= FAR * kl_limit:
        return []
    what = _("{type} is far from the trained model: KL {kl:.2g} (at most {kl_limit:.2g}), same top-1 token {top1:.1%}",
             type=document.type, kl=kl, kl_limit=kl_limit, top1=logits.get("top1", math.nan))  # fmt: skip
    larger = "f16" if document.type == "q8_0" else "q8_0"
    fix = f"`{export_command(run)} --gguf {larger}`" if document.type != "f16" else ""
    return [Finding("export-far-off", "warning", where, what, _("its answers differ from those of the run"), fix)]


def keeps_little(where: str, figures: ExportFigures, run: Run) -> list[Finding]:
    """A file that keeps less than half of what was learned."""
    if figures.judgement != "loses-training" or figures.kept is None:
        return []
    what = _("{type} keeps {share:.0%} of what was learned", type=figures.type, share=max(0.0, figures.kept))
    fix = f"`{export_command(run)} --gguf auto`"
    return [Finding("export-far-off", "warning", where, what, _("its answers differ from those of the run"), fix)]


# Data and answers ---------------------------------------------------------------------------------------------------


def few_samples(run: Run, plan: PlanDocument, training: Training, helps: RunRemedies) -> list[Finding]:
    """Too little data for a persona; a remark only where training went well. More conversations mend it, which no
    command writes; samples of the recipe's fact sheet `fasttune augment` does."""
    verdict = training.judged.verdict if training.judged else None
    is_bad = verdict not in (None, "excellent", "good", "fair")
    if plan.train_samples >= FEW_SAMPLES:
        return []
    what = ngettext("{n} training sample is too little", "{n} training samples are too few", plan.train_samples)
    why = (
        _("a hundred or more varied conversations teach a persona")
        if verdict == judgement.NOTHING_LEARNED or wants_more_epochs(training)
        else _("more epochs make such a set known by heart; a hundred or more varied conversations teach a persona")
    )
    fix = (
        _("write more conversations, or make samples of the recipe's fact sheet: `{command}`", command=helps.augment)
        if helps.augment
        else _("write more conversations; `{command}` says what is missing in them", command=helps.check)
    )
    return [Finding("too-little-data", "warning" if is_bad else "info", run.id, what, why, fix)]


def about_answers(run: Run, dataset: Dataset | None, training: Training, helps: RunRemedies) -> list[Finding]:
    """Probe answers of the trained model that parrot the data, babble, or fall out of character. None of them advises
    more epochs where the curves ask for fewer, nor the other way round."""
    given = [(one.question, one.trained) for one in epochs.served_probes(run) if one.trained]
    if not given:
        return []
    samples = dataset.train if dataset else ()
    known = [(sample.id, m.content) for sample in samples for m in sample.messages if m.role == "assistant"]
    asked = {answer_faults.plain(m.content) for sample in samples for m in sample.messages if m.role == "user"}
    by_curves = helps.fewer_epochs if wants_fewer_epochs(training) else helps.more_epochs
    fewer = "" if wants_more_epochs(training) else helps.fewer_epochs
    fewer = fewer or helps.check  # best at the end: nothing but other samples helps
    more = helps.check if is_well(training) else by_curves
    return [
        *parrots(run, [one for one in given if answer_faults.plain(one[0]) not in asked], known, fewer),
        *babble(run, given, training, helps),
        *fallen_out(run, given, [text for _name, text in known], more),
    ]


def parrots(run: Run, given: Sequence[tuple[str, str]], known: Sequence[tuple[str, str]], remedy: str) -> list[Finding]:
    """Answers to other questions than the data's that are training answers, or nearly."""
    plain = [(name, answer_faults.plain(text)) for name, text in known]
    found = [(question, hit) for question, answer in given if (hit := answer_faults.parroted(answer, plain))]
    if not found:
        return []
    shown = "; ".join(f"{question} -> {hit[0]} ({hit[1]:.0%})" for question, hit in found[:MOST_SHOWN])
    what = ngettext("{n} of {all} probe answers is a training answer, or nearly one: {shown}",
                    "{n} of {all} probe answers are training answers, or nearly: {shown}", len(found),
                    all=len(given),
                    shown=shown)  # fmt: skip
    why = _("the question is another one: it recites instead of answering")
    return [Finding("parrots-training-data", "warning", run.id, what, why, typed(remedy))]


def babble(
    run: Run, given: Sequence[tuple[str, str]], training: Training, helps: RunRemedies
) -> list[Finding]:  # fmt: skip
    """Answers that repeat themselves: more epochs help where it is not learned yet, a larger base where the held-out
    loss is at its best, else fewer epochs."""
    shares = [(question, answer_faults.repeated_share(answer)) for question, answer in given]
    found = [(question, share) for question, share in shares if share > answer_faults.REPEATED]
    if not found:
        return []
    shown = "; ".join(f"{question} ({share:.0%})" for question, share in found[:MOST_SHOWN])
    what = ngettext("{n} of {all} probe answers repeats itself (share of repeated 4-grams): {shown}",
                    "{n} of {all} probe answers repeat themselves (share of repeated 4-grams): {shown}", len(found),
                    all=len(given), shown=shown)  # fmt: skip
    why, remedy = _("usual after too many epochs"), helps.fewer_epochs
    if wants_more_epochs(training):
        why, remedy = _("usual where little was learned yet"), helps.more_epochs
    elif is_best_at_the_end(training):
        why, remedy = _("the held-out loss is good; a small base loops in greedy answers"), helps.larger_base
    return [Finding("babble", "warning", run.id, what, why, typed(remedy))]


def is_best_at_the_end(training: Training) -> bool:
    """Whether the last evaluation has the lowest held-out loss."""
    evaluated = training.curve.finite.evaluations
    return bool(evaluated) and judgement.best_evaluation(evaluated) == evaluated[-1]


def is_well(training: Training) -> bool:
    """Whether the held-out loss says that the training went well."""
    return training.judged is not None and training.judged.verdict in ("excellent", "good", "fair")


def fallen_out(
    run: Run, given: Sequence[tuple[str, str]], training_answers: Sequence[str], remedy: str
) -> list[Finding]:
    """Answers in which it is the base again."""
    found = [(question, said) for question, answer in given
             if (said := answer_faults.out_of_character(answer, training_answers))]  # fmt: skip
    if not found:
        return []
    shown = "; ".join(f"{question} -> {said}" for question, said in found[:MOST_SHOWN])
    what = ngettext("{n} of {all} probe answers falls out of character: {shown}",
                    "{n} of {all} probe answers fall out of character: {shown}", len(found), all=len(given),
                    shown=shown)  # fmt: skip
    why = _("it names the base or says that it is a model, which its samples never do")
    return [Finding("out-of-character", "warning", run.id, what, why, typed(remedy))]


# Rank, base, series -------------------------------------------------------------------------------------------------


def rank(run: Run, training: Training) -> list[Finding]:
    """A LoRA rank that does not suit what the run shows; a rank is changed last."""
    judged, r = training.judged, training.rank
    if judged is None or r is None or training.samples is None:
        return []
    if r >= LARGE_RANK and judged.verdict == judgement.OVER_FITTING and training.samples < BANDS[2][0]:
        what = _("LoRA rank {rank} is large for {samples} samples, and it over-fits", rank=r, samples=training.samples)
        return [Finding("rank-too-high", "info", run.id, what, _("try fewer epochs first, then half the rank"),
                        typed(training.remedies.lower_rank))]  # fmt: skip
    if r < SMALL_RANK and judged.verdict in (judgement.NOT_ENOUGH, judgement.NOTHING_LEARNED):
        what = _("LoRA rank {rank} is small, and it has not learned enough", rank=r)
        return [Finding("rank-too-low", "info", run.id, what, _("try more epochs first, then rank 8"),
                        typed(training.remedies.higher_rank))]  # fmt: skip
    return []


def small_base(
    run: Run, training: Training, found: Sequence[Finding], helps: RunRemedies
) -> list[Finding]:  # fmt: skip
    """A small base, where training is well and the answers are not."""
    size = SMALL_BASE.search(training.base or "")
    is_small = size is not None and float(size[1]) < 1
    if not is_small or not is_well(training) or not any(one.code in ("babble", "out-of-character") for one in found):
        return []
    what = _("{base} is small: training went well, and its answers are not", base=training.base)
    return [Finding("base-too-small", "info", run.id, what, "", typed(helps.larger_base))]


def began_again(run: Run, plan: PlanDocument) -> list[Finding]:
    """A remark where a run of the same samples and settings was there, and this one began from the base again: as it
    was told to, since nothing else makes a second run of a fresh recipe. What over-fitted or diverged was not worth
    continuing."""
    others = [one for one in store.list_runs(run.root, run.series) if one != run and is_same_training(one, run, plan)]
    if not others:
        return []
    before, first_loss = summary.read_figures(others[-1]), summary.read_figures(run).first_loss
    if before.verdict in NOT_TO_CONTINUE or None in (before.epoch_loss, before.first_loss, first_loss):
        return []
    assert before.epoch_loss is not None and before.first_loss is not None and first_loss is not None
    learned = before.first_loss - before.epoch_loss
    if learned <= LEARNED * before.first_loss or first_loss <= before.epoch_loss + RELEARNED * learned:
        return []
    what = _("it began from the base again, as a new run does; {run} had ended at loss {loss:.3f}",
             run=others[-1].id, loss=before.epoch_loss)  # fmt: skip
    return [Finding("begins-again", "info", run.id, what, _("what that run had learned is not in this one"))]


def is_same_training(other: Run, run: Run, plan: PlanDocument) -> bool:
    """Whether a run of the series, up to this one, is the same training from the base; its epochs may differ."""
    if plan.start != "base" or plan.strategy != "fresh" or store.run_number(other) > store.run_number(run):
        return False
    try:
        before = documents.read_plan(other)
    except FasttuneError:
        return False
    length = ("epochs", "train.save_steps", "train.eval_steps", "train.logging_steps", "train.early_stopping_patience")
    changed = [one for one in summary.changes(before, replace(plan, name=before.name)) if one.key not in length]
    return before.start == "base" and before.strategy == "fresh" and not changed
