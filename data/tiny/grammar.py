"""The generated part of the corpus: small chats and stories in Chinese and English, from patterns and sums.

A *chat* is a tuple of lines that alternate between user and assistant, a *text* is a plain document. `patterns.*.txt`
hold chats and `stories.*.txt` texts with slots, one a block; `|` separates wordings of a line. A slot `{animals}` is a
word of that category of words.toml, `{animals2}` another one, `{any:0}` the first element (Chinese) of the entry, a(n)
the fitting article. What needs arithmetic is written by the `*_chat` functions below. The generator's seed decides all.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Chat = tuple[str, ...]

HERE = Path(__file__).parent
WORDS: dict[str, list[list[str]]] = tomllib.loads((HERE / "words.toml").read_text(encoding="utf-8"))
WORDS["any"] = [
    entry
    for kind in ("animals", "colours", "fruits", "foods", "things", "places", "feelings", "hobbies", "jobs", "words")
    for entry in WORDS[kind]
]
CHARACTERS = sorted(set((HERE / "characters.txt").read_text(encoding="utf-8")) - {"\n"})
# Punctuation, Latin, Greek, Cyrillic, kana, all Chinese characters, emoji: code points, the last one excluded.
RANGES = (
    (0x21, 0x30), (0x3A, 0x41), (0x5B, 0x61), (0xA1, 0x180), (0x3B1, 0x3CA), (0x410, 0x450), (0x3041, 0x3097),
    (0x30A1, 0x30FB), (0x4E00, 0x9FA6), (0x4E00, 0x9FA6), (0x1F300, 0x1F650),
)  # fmt: skip
SENTENCE = re.compile(r"[^。！？.!?]+[。！？.!?]+[”\"]? ?")
SLOT = re.compile(r"\{([a-z_]+)(\d?)(?::(\d))?\}")
DIGITS = "零一二三四五六七八九十"


def read_blocks(path: Path) -> list[Chat]:
    """The blocks of a text file (separated by empty lines), each the tuple of its lines."""
    return [tuple(block.splitlines()) for block in path.read_text(encoding="utf-8").strip().split("\n\n")]


def polished(text: str) -> str:
    """English with its articles chosen and its sentences beginning with a capital."""
    text = re.sub(r"(A|a)\(n\) (\w)", lambda m: f"{m[1]}{'n' if m[2] in 'aeiou' else ''} {m[2]}", text)
    return re.sub(r'(^"?|[.?!:] "?|[.?!]" )([a-z])', lambda m: m[1] + m[2].upper(), text)


def filled(lines: Chat, zh: bool, rng: random.Random) -> Chat:
    """The block with a wording chosen for each line and its slots filled, equal slots with equal words."""
    drawn: dict[str, list[list[str]]] = {}

    def word(slot: re.Match[str]) -> str:
        kind, index, element = slot.groups()
        if kind not in drawn:
            drawn[kind] = rng.sample(WORDS[kind], 3)
        return drawn[kind][int(index or 1) - 1][int(element) if element else int(not zh)]

    chosen = (SLOT.sub(word, rng.choice(line.split("|"))) for line in lines)
    return tuple(chosen) if zh else tuple(polished(line) for line in chosen)


def number_zh(value: int) -> str:
    """A number from 0 to 99 in Chinese characters."""
    if value <= 10:
        return DIGITS[value]
    tens, ones = divmod(value, 10)
    return ("" if tens == 1 else DIGITS[tens]) + "十" + (DIGITS[ones] if ones else "")


def sum_chat(zh: bool, rng: random.Random) -> Chat:
    """Addition, subtraction or a product of small numbers."""
    x, y = rng.randint(1, 20), rng.randint(1, 20)
    sign, zh_name, en_name = rng.choice((("+", "加", "plus"), ("-", "减", "minus"), ("×", "乘以", "times")))
    if sign == "-":
        x, y = max(x, y), min(x, y)
    if sign == "×":
        x, y = x % 9 + 1, y % 9 + 1
    result = {"+": x + y, "-": x - y, "×": x * y}[sign]
    if zh:
        question = rng.choice((f"{x}{zh_name}{y}等于多少？", f"{x} {sign} {y} = ?", f"请算一下{x}{zh_name}{y}。"))
        return question, rng.choice((f"{x}{zh_name}{y}等于{result}。", f"答案是{result}。"))
    question = rng.choice((f"What is {x} {en_name} {y}?", f"{x} {sign} {y} = ?", f"Please work out {x} {en_name} {y}."))
    return question, rng.choice((f"{x} {en_name} {y} is {result}.", f"The answer is {result}."))


def compare_chat(zh: bool, rng: random.Random) -> Chat:
    """Which of two numbers is the larger one."""
    x, y = rng.sample(range(100), 2)
    if zh:
        return f"{x}和{y}哪个大？", f"{max(x, y)}比{min(x, y)}大。"
    return f"Which is larger, {x} or {y}?", f"{max(x, y)} is larger than {min(x, y)}."


def counting_chat(zh: bool, rng: random.Random) -> Chat:
    """Counting upwards or downwards."""
    numbers = list(range(first := rng.randint(1, 90), first + rng.randint(4, 8)))
    if rng.random() < 0.3:
        numbers.reverse()
    if zh:
        spell = rng.choice((str, number_zh))
        return f"请从{spell(numbers[0])}数到{spell(numbers[-1])}。", "、".join(map(spell, numbers)) + "。"
    return f"Count from {numbers[0]} to {numbers[-1]}.", ", ".join(map(str, numbers)) + "."


def next_chat(zh: bool, rng: random.Random) -> Chat:
    """The day, month or season before or after another one."""
    kind, step = rng.choice(("days", "months", "seasons")), rng.choice((1, -1))
    index, language = rng.randrange(len(WORDS[kind])), int(not zh)
    this, that = WORDS[kind][index][language], WORDS[kind][(index + step) % len(WORDS[kind])][language]
    if not zh:
        side = "after" if step > 0 else "before"
        return f"What comes {side} {this}?", polished(f"{that} comes {side} {this}.")
    if kind == "days":
        day = "明天" if step > 0 else "昨天"
        return f"今天是{this}，{day}是星期几？", f"{day}是{that}。"
    side = "后面" if step > 0 else "前面"
    return f"{this}的{side}是什么？", f"{this}的{side}是{that}。"


def many_chat(zh: bool, rng: random.Random) -> Chat:
    """A small sum in a story."""
    who, thing = rng.choice(WORDS["names"])[int(not zh)], rng.choice(WORDS["things"])[int(not zh)]
    more, y = rng.random() < 0.5, rng.randint(1, 9)
    x = rng.randint(2, 10) + (0 if more else y)
    total = x + y if more else x - y
    if zh:
        return f"{who}有{x}个{thing}，{'又买了' if more else '送走了'}{y}个，现在有几个？", f"现在有{total}个{thing}。"
    verb = "bought" if more else "lost"
    return polished(f"{who} had {x} of them and {verb} {y}. How many are there now?"), f"There are {total} now."


def copy_chat(zh: bool, rng: random.Random) -> Chat:
    """Any characters repeated: practice in copying, and the only place where the rare ones are seen."""
    count = rng.randint(4, 12)
    if rng.random() < 0.8:
        text = "".join(rng.sample(CHARACTERS, count))
    else:
        text = "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(count))
    openings = ("请重复：", "跟我说：", "请写：") if zh else ("Please repeat: ", "Say after me: ", "Please write: ")
    return rng.choice(openings) + text, text


SUMS = (sum_chat, compare_chat, counting_chat, next_chat, many_chat, copy_chat, copy_chat, copy_chat, copy_chat)


def writers(language: str) -> list[Callable[[random.Random], Chat]]:
    """Everything that writes a chat in a language, one entry a pattern."""
    zh = language == "zh"
    patterns = [partial(filled, block, zh) for block in read_blocks(HERE / f"patterns.{language}.txt")]
    return [*patterns, *(partial(write, zh) for write in SUMS * (len(patterns) // 20))]


def exercise(text: str, rng: random.Random) -> Chat:
    """A chat about a text: repeat a sentence of it, or continue where it breaks off."""
    sentences = SENTENCE.findall(text)
    zh, at = not text.isascii(), rng.randrange(1, len(sentences))
    chosen, after = sentences[at - 1].strip(), "".join(sentences[at : at + 2]).strip()
    if rng.random() < 0.4:
        return rng.choice(("请重复：", "跟我说：") if zh else ("Please repeat: ", "Say after me: ")) + chosen, chosen
    return rng.choice(("请接着写：", "后面是什么？") if zh else ("Go on: ", "What comes next? ")) + chosen, after


def generate(count: int, rng: random.Random) -> tuple[list[Chat], list[str]]:
    """`count` documents: four chats for each text, three Chinese ones for two English ones; duplicates are removed."""
    chat_writers = {language: writers(language) for language in ("zh", "en")}
    stories = {language: read_blocks(HERE / f"stories.{language}.txt") for language in ("zh", "en")}
    chats: dict[Chat, None] = {}
    texts: dict[str, None] = {}
    for index in range(count):
        language = "zh" if rng.random() < 0.6 else "en"
        if index % 5:
            chats[rng.choice(chat_writers[language])(rng)] = None
        else:
            texts["\n".join(filled(rng.choice(stories[language]), language == "zh", rng))] = None
    return list(chats), list(texts)
