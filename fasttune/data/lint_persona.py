"""Who the assistant says that it is: out of character, another name, the base's own name, the system prompts.

A data set is a persona's where its system prompts or its answers give the assistant a name, or the system prompt says
who it is without calling it an assistant. An assistant that is meant to be one may say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fasttune.console import Finding, Level, _, ngettext
from fasttune.data.dataset import MOST_OF_THEM, Message, Sample
from fasttune.data.messages import listed
from fasttune.data.near_duplicates import jaccard, trigrams

A, AI = (
    "(?:一个|一名|一位|一款|一种|个|名|款)?",
    "(?:AI|人工智能|(?:大型?)?语言模型|大模型|智能助手|虚拟助手|聊天机器人)",
)
AI_PHRASE = re.compile(
    rf"作为{A}{AI}|(?<![不非])(?:我|本人)(?:只|就|其实|不过)?是{A}{AI}(?![吗么？?])"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\bI(?:'|’| a)m (?:just |only |merely )?an? (?:AI|artificial intelligence|(?:large )?language model|chatbot)\b",
    re.IGNORECASE,
)
# What Qwen2.5 calls itself; and the assistants that texts of the web say they are.
BASE_NAMES = re.compile(r"\bQwen\w*\b|通义千问|千问|通义实验室|阿里云|阿里巴巴|\bAlibaba\b|\bTongyi\b", re.IGNORECASE)
MAKERS = (
    "OpenAI|ChatGPT|GPT-?[34]\\w*|Anthropic|Claude|DeepSeek|Gemini|Llama|文心一言|百度|豆包|Kimi|讯飞星火|智谱|ChatGLM"
)
OTHER_ASSISTANTS = re.compile(
    rf"我是(?:{MAKERS})|由(?:{MAKERS})\S{{0,6}}(?:开发|训练|研发|推出)"
    rf"|\bI(?:'|’| a)m (?:{MAKERS})\b|\b(?:developed|trained|created|made|built) by (?:{MAKERS})\b",
    re.IGNORECASE,
)
IS_ASSISTANT = re.compile(rf"(?<!不)是{A}.{{0,12}}(?:{AI}|助手|助理)|\byou are .{{0,40}}\b(?:assistant|AI|model|bot)\b",
                          re.IGNORECASE)  # fmt: skip
SURNAMES = (
    "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦许何吕张孔曹严华金魏陶姜谢邹苏潘葛范彭郎鲁韦马苗花方俞任袁柳鲍史唐薛雷贺"
    "倪汤滕罗毕郝安常于傅顾孟黄穆萧尹姚邵汪毛米戴宋庞熊纪舒项祝董梁杜阮蓝季贾江童郭梅林钟徐邱骆高夏蔡田樊胡凌霍"
    "万柯卢莫房丁邓洪包石崔龚程邢裴陆翁甄封储段侯班仇祖武刘龙叶白蒲卓乔谭申冉温庄柴阎习艾容古易廖耿文关向简曾关小阿"
)
STOP, SELF = r"(?=[，。！？、；：,.!?;:\s～~…—”\"）)]|$)", "[\u4e00-\u9fff·]"
TOLD_ZH = re.compile(rf"(?:你叫|你的名字[是叫]|你是|名叫)[“\"「]?({SELF}{{2,4}}?)[”\"」]?{STOP}")
SAYS_ZH = re.compile(
    rf"(?<![不别])(?:我叫|我的名字[是叫]|本名|我名叫|叫我)[“\"「]?({SELF}{{2,4}}?)(?:就好|就行|吧)?[”\"」]?{STOP}"
)
IS_ZH = re.compile(rf"(?:^|[，。！？\s])我是[“\"「]?({SELF}{{2,3}}?)[”\"」]?{STOP}")
TOLD_EN = re.compile(r"\b[Yy]ou are ([A-Z][a-z]+)\b|\b[Yy]our name is ([A-Z][a-z]+)\b|\bnamed ([A-Z][a-z]+)\b")
SAYS_EN = re.compile(r"\b(?:[Mm]y name(?:'|’| i)s|[Cc]all me) ([A-Z][a-z]+)\b")
IS_EN = re.compile(r"\bI(?:'|’| a)m ([A-Z][a-z]+)(?=[,.!?;:\s]*(?:$|[,.!?;:]|and\b))")
NOT_A_NAME = re.compile(r"(?:ese|ish|ian|ican|man|ench|ek|iss)$|^(?:Sorry|Fine|Not|So|Here|Glad|Happy|Sure|Yes|No|OK)$")
NOT_NAMES_ZH = re.compile(
    "[的了是不会吗呢啊吧在有人生客座]$|^(?:高中|大学|小学|高兴|安全|方便|常常|马上|白天|高级|小声|小心|任何|万一|文盲|向来|简单|"
    "古人|温柔|熊猫|龙|小猫|小狗|小孩|小时)"
)
DRIFT = 0.5  # similarity from which on another system prompt is a changed copy of the usual one
QWEN_DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."  # of Qwen2.5's chat template


@dataclass(frozen=True)
class Persona:
    """Who the assistant is: its name in Chinese and in English ("" for none), whether it is meant to be an assistant,
    and the usual system prompt ("" for none)."""

    chinese: str
    english: str
    is_assistant: bool
    system: str

    @property
    def exists(self) -> bool:
        """Whether the data are a persona's."""
        return not self.is_assistant and bool(self.chinese or self.english or self.system)


def persona_of(samples: Sequence[Sample]) -> Persona:
    """The persona of a data set: named by its usual system prompt, else by most of its own answers."""
    prompts = Counter(message.content for sample in samples for message in sample.messages if message.role == "system")
    system = prompts.most_common(1)[0][0] if prompts else ""
    answers = [message for sample in samples for message in sample.messages if message.role == "assistant"]
    chinese = TOLD_ZH.findall(system)[:1] or most(name for one in answers for name in SAYS_ZH.findall(one.content))
    told = ["".join(groups) for groups in TOLD_EN.findall(system)][:1]
    english = told or most(name for one in answers for name in names_in_english(one.content))
    return Persona("".join(chinese), "".join(english), bool(IS_ASSISTANT.search(system)), system)


def most(names: Iterator[str]) -> list[str]:
    """The most frequent of the names, of equally frequent ones the first; empty for none."""
    return [name for name, _count in Counter(names).most_common(1)]


def names_in_english(text: str) -> list[str]:
    """The names that an English text gives its speaker."""
    said = [*SAYS_EN.findall(text), *IS_EN.findall(text)] if "m " in text or "me " in text else []
    return [name for name in said if not NOT_A_NAME.search(name)]


def names_in_chinese(text: str) -> list[str]:
    """The names that a Chinese text gives its speaker."""
    if "我" not in text:
        return []
    said = SAYS_ZH.findall(text) + IS_ZH.findall(text)
    return [name for name in said if name[0] in SURNAMES and not NOT_NAMES_ZH.search(name)]


def findings(samples: Sequence[Sample], persona: Persona) -> Iterator[Finding]:
    """What the answers of a persona say that it would not."""
    if not persona.exists:
        return
    for sample in samples:
        for before, message in zip(sample.messages, sample.messages[1:], strict=False):
            if message.role == "assistant" and message.learn:
                said = [*out_of_character(sample.id, before, message, persona)]
                yield from said or another_name(sample.id, message, persona)


def out_of_character(where: str, before: Message, answer: Message, persona: Persona) -> Iterator[Finding]:
    """ "As an AI", and the name of the base or of another assistant that nobody had asked about."""
    name = BASE_NAMES.search(answer.content) or OTHER_ASSISTANTS.search(answer.content)
    if name and name[0] not in before.content and name[0] not in persona.system:
        what = _("the answer names the base or another assistant: '{text}'", text=name[0])
        why = _("the base says this of itself anyway; trained on, it stays")
        yield Finding("base-name", "warning", where, what, why, _("answer as the persona would"))
    elif phrase := AI_PHRASE.search(answer.content):
        what = _("the answer is out of character: '{text}'", text=phrase[0])
        why = _("a few such answers are enough for the persona to say it often")
        yield Finding("ai-phrase", "warning", where, what, why, _("answer as the persona would"))


def another_name(where: str, answer: Message, persona: Persona) -> Iterator[Finding]:
    """A name for itself that is not the persona's. A nickname, which shares a character with the name, is one of its
    own; so is any name that the system prompt holds."""
    chinese = [
        name for name in names_in_chinese(answer.content) if persona.chinese and not set(name) & set(persona.chinese)
    ]
    english = [name for name in names_in_english(answer.content) if persona.english and name != persona.english]
    for name in [one for one in (*chinese, *english) if one not in persona.system][:1]:
        usual = persona.chinese if name in chinese else persona.english
        what = _("the assistant calls itself {name}, elsewhere {usual}", name=name, usual=usual)
        why = _("the model would take one of the two names by chance")
        yield Finding("another-name", "warning", where, what, why, _("write the persona's name"))


# System prompts -----------------------------------------------------------------------------------------------------


def system_prompts(samples: Sequence[Sample], persona: Persona, default: str) -> Iterator[Finding]:
    """Samples without a system prompt where others have one, and samples with another one than most.

    `default` is what the chat template writes where there is none; "" for nothing.
    """
    given = {sample.id: sample.messages[0].content for sample in samples if sample.messages[0].role == "system"}
    missing = [sample.id for sample in samples if sample.id not in given]
    if missing:
        yield from missing_prompt(missing, len(samples), persona, default)
    usual, count = Counter(given.values()).most_common(1)[0] if given else ("", 0)
    others = {where: text for where, text in given.items() if text != usual}
    if others and count > MOST_OF_THEM * len(given):
        for where, text in others.items():
            yield other_prompt(where, text, usual)
    elif others:
        what = _(
            "{n} different system prompts; the model is served with the most frequent, of {count} samples: '{text}'",
            n=len(set(given.values())),
            count=count,
            text=usual[:60],
        )
        why = _("under another one it is who that one says; without any it is this one")
        fix = _("for one character alone, train on its samples only")
        yield Finding("many-system-prompts", "info", next(iter(others)), what, why, fix)


def missing_prompt(missing: Sequence[str], samples: int, persona: Persona, default: str) -> Iterator[Finding]:
    """The finding about samples without a system prompt."""
    why = _("the chat template gives them none either")
    if default:
        why = _("the chat template writes its own into them: '{text}'", text=default)
    if len(missing) < samples:
        what = ngettext("{n} of {all} samples has no system prompt, the others have one: {ids}",
                        "{n} of {all} samples have no system prompt, the others have one: {ids}",
                        len(missing), all=samples, ids=listed(list(missing)))  # fmt: skip
        fix = _("write the same into all of them; `data.system` in the recipe adds it to those that have none")
        yield Finding("missing-system-prompt", "warning", missing[0], what, why, fix)
        return
    what = _("no sample has a system prompt")
    fix = _("set data.system to the persona's prompt, or to '' for an empty one; serve the model with the same")
    level: Level = "warning" if default and persona.exists else "info"  # "You are Qwen", and a persona's answers
    yield Finding("template-default-system", level, missing[0], what, why, fix)


def other_prompt(where: str, text: str, usual: str) -> Finding:
    """The finding about a sample whose system prompt is not the usual one."""
    if jaccard(trigrams(text), trigrams(usual)) >= DRIFT:
        what = _("its system prompt is a changed copy of the usual one: '{text}'", text=difference(text, usual))
    else:
        what = _("its system prompt is another one than most have: '{text}'", text=text[:40])
    why = _("what it teaches belongs to a prompt that the model is not served with")
    return Finding("other-system-prompt", "warning", where, what, why, _("write the usual one, or remove the sample"))


def difference(text: str, usual: str) -> str:
    """The part of a text around the first character that differs from the usual one."""
    at = next(
        (n for n, (one, other) in enumerate(zip(text, usual, strict=False)) if one != other), min(len(text), len(usual))
    )
    return f"…{text[max(0, at - 10) : at + 20]}"
