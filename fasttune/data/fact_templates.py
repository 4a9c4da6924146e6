"""What stands around the wordings of a fact sheet in training samples, written for fasttune, in Chinese and English.

`{ask}` is a wording of the question, `{text}` the fact as the sheet states it, `{wrong}` a phrase that it forbids.
Every answer of a tuple fits every question of the tuple before it, since they are combined at random.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Templates:
    """The templates of one language; `joint` stands between two sentences, `alone` begins an answer that needs no
    question, and `mark` ends a question."""

    lead_ins: tuple[str, ...]
    right: tuple[str, ...]
    yes: tuple[str, ...]
    wrong: tuple[str, ...]
    no: tuple[str, ...]
    doubts: tuple[str, ...]
    sure: tuple[str, ...]
    objections: tuple[str, ...]
    both: tuple[str, ...]
    tell: tuple[str, ...]
    joint: str
    alone: tuple[str, ...]
    mark: tuple[str, ...]


CHINESE = Templates(
    lead_ins=("问你个事，", "对了，", "忽然想起来，", "顺便问一句，", "我有点好奇，", "换个话题，"),
    right=(
        "听人说“{text}”，是这样吗？",
        "街上都讲“{text}”，对不对？",
        "我记得“{text}”，没记错吧？",
        "有人跟我提过“{text}”，有这回事？",
    ),
    yes=("对。", "没错。", "是这样。"),
    wrong=(
        "{ask}我听说是“{wrong}”。",
        "{ask}不是“{wrong}”吗？",
        "{ask}我一直当是“{wrong}”。",
        "有人跟我说“{wrong}”，不对吧？{ask}",
    ),
    no=("不是。", "听岔了。", "不对。", "没这回事。"),
    doubts=("真的？", "当真？", "不哄我？"),
    sure=("真的。", "错不了。", "不哄你。"),
    objections=("我怎么听说是“{wrong}”？", "不是“{wrong}”吗？", "可有人跟我说“{wrong}”。"),
    both=("{ask}还有，{other}", "{ask}{other}", "两件事：{ask}{other}"),
    tell=(
        "说几件跟你有关的事听听？",
        "我想多认识你一点，随便讲讲？",
        "挑几件要紧的事，让我晓得你是谁？",
        "写信给朋友提起你，我该写些什么？",
        "你的事我还一件都不知道，讲几件？",
    ),
    joint="",
    alone=("我",),
    mark=("？", "?"),
)
ENGLISH = Templates(
    lead_ins=("One more thing. ", "Quick question. ", "Before I forget. ", "Another matter. ", "I'm curious. "),
    right=(
        'Somebody told me this about you: "{text}." Is it so?',
        'People around here say: "{text}." Are they right?',
        'I wrote this down: "{text}." Have I got it right?',
    ),
    yes=("That's right. ", "They've got it right. ", "It's so. "),
    wrong=(
        '{ask} I heard it was "{wrong}".',
        '{ask} Isn\'t it "{wrong}"?',
        '{ask} I always took it for "{wrong}".',
        'Somebody said "{wrong}" to me. {ask}',
    ),
    no=("No. ", "They've got it wrong. ", "Not so. "),
    doubts=("Really?", "Are you sure?", "You're not pulling my leg?"),
    sure=("Quite sure. ", "Truly. "),
    objections=('I thought it was "{wrong}".', 'Isn\'t it "{wrong}"?', 'But somebody said "{wrong}" to me.'),
    both=("{ask} {other}", "Two things. {ask} {other}", "{ask} And then: {other}"),
    tell=(
        "Give me a few plain facts about your life?",
        "What would you put in a letter to a stranger?",
        "If I had to describe you to a friend, what should I say?",
        "Which things ought one to know of you?",
    ),
    joint=" ",
    alone=("I ", "I'", "My "),
    mark=("?",),
)
