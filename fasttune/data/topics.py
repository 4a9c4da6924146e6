"""Which of the things that people ask a persona the samples hardly hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from fasttune.console import COMMA, N_, Finding, _
from fasttune.data.dataset import Sample

FEW = 3  # samples on a topic that hardly teach it
LEAST_SAMPLES = 30  # of a data set whose topics are worth counting
TOPICS = {
    N_("who it is"): r"你是谁|你叫什么|介绍.{0,4}自己|怎么称呼|名字|who are you|your name|about yourself|called",
    N_("greetings"): r"^(?:你好|您好|嗨|哈喽|在吗|早|晚上好|大家好)|^(?:hello|hi|hey|good (?:morning|evening))\b",
    N_("farewells"): r"再见|拜拜|晚安|我走了|先睡了|去睡了|\b(?:bye|goodbye|good night|see you)\b",
    N_("feelings"): r"难过|伤心|心情|累|烦|孤单|害怕|想哭|焦虑|睡不着|\b(?:sad|lonely|tired|afraid|upset|feel)\b",
    N_("likes and dislikes"): r"喜欢|讨厌|最爱|爱吃|怕什么|\b(?:like|love|hate|favou?rite)\b",
    N_("being an AI"): r"AI|机器人|真人|人工智能|语言模型|程序|\b(?:robot|human|real person|chatbot)\b",
}


def thin(samples: Sequence[Sample]) -> Iterator[Finding]:
    """The topics of TOPICS that fewer than FEW samples ask about. Samples made of a fact sheet don't make a small data
    set a large one."""
    if sum(not sample.made_from for sample in samples) < LEAST_SAMPLES:
        return
    counts = count(samples)
    few = [_("{name} ({n})", name=_(name), n=counts[name]) for name in TOPICS if counts[name] < FEW]
    if few:
        what = _("topics with fewer than {few} samples: {topics}", few=FEW, topics=_(COMMA).join(few))
        why = _("asked about them, the model answers as the base does")
        where = samples[0].id.rpartition(":")[0]
        yield Finding("thin-topics", "info", where, what, why, _("write a few samples on each"))


def count(samples: Sequence[Sample]) -> Counter[str]:
    """How many samples ask about each topic; one sample may ask about several."""
    patterns = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in TOPICS.items()}
    found: Counter[str] = Counter()
    for sample in samples:
        asked = "\n".join(message.content for message in sample.messages if message.role == "user")
        found.update(name for name, pattern in patterns.items() if pattern.search(asked))
    return found
