"""What is worth saying about the samples of a plan, or of a first recipe: few of them, few steps, an answer that
outweighs all others, a held-out set of one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from fasttune.console import Finding, _, ngettext
from fasttune.data.dataset import Sample
from fasttune.data.lint import quick
from fasttune.data.tokenize import estimate_sample, estimate_tokens
from fasttune.planning.strategy import Plan
from fasttune.runs.holding_out import LEFT_TO_TRAIN
from fasttune.runs.judgement import ENOUGH_HELD_OUT, FEW_HELD_OUT

FEW_STEPS = 30  # fewer hardly move a base
# An answer with more than this share of all answers' tokens, and so many times the median's, outweighs the others.
LARGE_SHARE, TIMES_MEDIAN = 0.2, 4


def advise(plan: Plan) -> list[Finding]:
    """All advice about a plan's samples and steps."""
    recipe, dataset = plan.recipe, plan.dataset
    held_out = one_held_out(str(recipe.path), len(dataset.held_out))
    found = [*about_samples(dataset.train, recipe.data.learn), *held_out, *few_steps(plan), *quick(dataset.train)]
    return [*found, *replay_under_same_prompt(plan)]


def about_samples(samples: Sequence[Sample], learn: str) -> list[Finding]:
    """Advice about training samples alone; `learn` is the recipe's data.learn."""
    return [*few_samples(samples), *outweighing_sample(samples, learn)]


def few_samples(samples: Sequence[Sample]) -> list[Finding]:
    """Fewer than LEFT_TO_TRAIN samples."""
    if len(samples) >= LEFT_TO_TRAIN:
        return []
    what = ngettext("{n} sample is very little to learn from", "{n} samples are very few to learn from", len(samples))
    why = _("the model learns these answers word for word rather than a persona")
    fix = _("write more; a hundred or more varied conversations are usual")
    return [Finding("few-samples", "info", samples[0].id.rpartition(":")[0], what, why, fix)]


def outweighing_sample(samples: Sequence[Sample], learn: str) -> list[Finding]:
    """A sample that holds a large share of all supervised tokens."""
    tokens = [supervised_tokens(sample, learn) for sample in samples]
    longest = max(range(len(tokens)), key=tokens.__getitem__)
    share = tokens[longest] / max(1.0, sum(tokens))
    if share <= LARGE_SHARE or tokens[longest] < TIMES_MEDIAN * median(tokens):
        return []
    what = _("this sample alone has {share:.0%} of all supervised tokens (about {tokens:.0f}; the median sample has "
             "{median:.0f})", share=share, tokens=tokens[longest], median=median(tokens))  # fmt: skip
    why = _("the loss is a mean over tokens, so that training mostly learns this one")
    return [Finding("outweighing-sample", "warning", samples[longest].id, what, why, _("shorten or split it"))]


def probably_too_long(samples: Sequence[Sample], limit: int, fix: str) -> list[Finding]:
    """Samples that are estimated to have more than `limit` tokens, the longest named; for who has no tokenizer yet."""
    tokens = {sample.id: estimate_sample(sample) for sample in samples}
    longest = max(tokens, key=tokens.__getitem__)
    long = sum(count > limit for count in tokens.values())
    if not long:
        return []
    what = ngettext("{n} sample probably has more than {limit} tokens: this one about {tokens:.0f}",
                    "{n} samples probably have more than {limit} tokens, this one about {tokens:.0f}", long,
                    limit=limit, tokens=tokens[longest])  # fmt: skip
    why = _("`fasttune run` refuses a longer sample: truncated, it would teach an answer without its end")
    return [Finding("probably-too-long", "warning", longest, what, why, fix)]


def one_held_out(where: str, held_out: int) -> list[Finding]:
    """Held-out samples too few to tell anything."""
    if not 0 < held_out < FEW_HELD_OUT:
        return []
    what = _("one held-out sample tells nothing; hold out {enough} or more", enough=ENOUGH_HELD_OUT)
    why = _("its loss moves by chance, so it decides no verdict and no advice")
    return [Finding("one-held-out-sample", "warning", f"{where}: data.val", what, why)]


def few_steps(plan: Plan) -> list[Finding]:
    """Fewer than FEW_STEPS steps from the base; not where the recipe itself sets train.max_steps."""
    where = f"{plan.recipe.path}: train.batch_size"
    return [] if plan.recipe.train.max_steps or plan.start.kind == "adapter" else too_few_steps(plan.total_steps, where)


def too_few_steps(steps: int, where: str) -> list[Finding]:
    """The finding about fewer than FEW_STEPS steps."""
    if steps >= FEW_STEPS:
        return []
    what = ngettext("{n} step in all is very little", "{n} steps in all are very few", steps)
    why = _("fewer than {least} steps hardly move a base", least=FEW_STEPS)
    fix = _("a smaller train.batch_size or more train.epochs make more steps; `auto` chooses them by the samples")
    return [Finding("few-steps", "warning", where, what, why, fix)]


def replay_under_same_prompt(plan: Plan) -> list[Finding]:
    """General conversations that are mixed into samples which have no system prompt either."""
    dataset = plan.dataset
    without = next((sample.id for sample in dataset.train if sample.messages[0].role != "system"), None)
    if not dataset.general or without is None:
        return []
    what = _("the general conversations of data.replay have no system prompt, and neither has this sample")
    why = _("under one and the same prompt the model learns to be the persona and the base's assistant by turns")
    fix = _("set data.system to the persona's prompt, or leave data.replay out")
    return [Finding("replay-same-prompt", "warning", without, what, why, fix)]


def median_answer(samples: Sequence[Sample]) -> float:
    """About how many tokens the median answer has."""
    answers = [m.content for sample in samples for m in sample.messages if m.role == "assistant" and m.learn]
    return median(map(estimate_tokens, answers)) if answers else 0.0


def supervised_tokens(sample: Sample, learn: str) -> float:
    """About how many supervised tokens a sample has: those of its answers, or with `learn` "all" of all messages."""
    supervised = [message for message in sample.messages if learn == "all" or message.role == "assistant"]
    return sum(estimate_tokens(message.content) for message in supervised)
