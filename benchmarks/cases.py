"""The data sets of the benchmarks, made from the project's own data: the same on every call, without a network.

case        what it stands for                                                         tokens a sample (Qwen2.5)
persona     one question and answer under a persona's prompt                           176 shared + 34 of its own
linzhi      data/linzhi/train.jsonl: conversations of one to four turns, one prompt    301, 223 of them shared
chat        short questions and answers, no system prompt in the data                  60
documents   long answers, every one different                                          about 810
mixed       persona conversations, short chat and documents in turn                    35 to 910
unshared    a system prompt of its own for every sample: nothing to share              about 60
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
Pair = tuple[str, str]  # a question and its answer
Messages = list[dict[str, str]]
PROMPT_END = (
    "你都还是林栀。"  # where the persona's prompt is cut, after about 176 tokens, the chat template's own included
)
SHORT_PAIRS = 450  # the shortest of Lin Zhi's pairs: 34 tokens on average


@dataclass(frozen=True)
class Case:
    """A data set and the samples of a step that it is measured with. `ablate`: also without each gain of fasttune's."""

    name: str
    batch_size: int
    ablate: bool = False


CASES = {
    case.name: case
    for case in (
        Case("persona", 16, ablate=True),
        Case("linzhi", 16),
        Case("chat", 16),
        Case("documents", 4),
        Case("mixed", 9),
        Case("unshared", 16),
    )
}


def write(name: str, folder: Path) -> Path:
    """The samples of a case as a JSONL file in a folder."""
    return write_samples(samples(name), folder / f"{name}.jsonl")


def write_samples(conversations: list[Messages], path: Path) -> Path:
    """Conversations as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in conversations]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def samples(name: str) -> list[Messages]:
    """The conversations of a case, in order."""
    makers = {
        "persona": persona,
        "linzhi": linzhi,
        "chat": chat,
        "documents": documents,
        "mixed": mixed,
        "unshared": unshared,
    }
    return makers[name]()


def persona() -> list[Messages]:
    """Lin Zhi's shortest questions and answers under the first part of her prompt."""
    system = prompt()
    return [conversation(question, answer, system) for question, answer in short_pairs()]


def linzhi() -> list[Messages]:
    """Lin Zhi's conversations as they are."""
    lines = (REPOSITORY / "data/linzhi/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def chat() -> list[Messages]:
    """The same short pairs without a system prompt; a chat template may add its own."""
    return [conversation(question, answer) for question, answer in short_pairs()]


def documents(count: int = 240) -> list[Messages]:
    """Long texts of paragraphs drawn anew for each, requested by their first words."""
    rng = random.Random("documents")
    texts = [rng.sample(paragraphs(), 14) for _number in range(count)]
    return [conversation(f"写一篇长文，这样开头：{text[0][:12]}", "\n\n".join(text)) for text in texts]


def mixed() -> list[Messages]:
    """A conversation of Lin Zhi's, a short chat and a document in turn."""
    return list(itertools.chain.from_iterable(zip(linzhi(), chat(), documents(), strict=False)))


def unshared() -> list[Messages]:
    """A system prompt for every sample, each beginning with a character of its own."""
    rng = random.Random("unshared")
    text = (REPOSITORY / "data/tiny/characters.txt").read_text(encoding="utf-8")
    characters = dict.fromkeys("".join(text.split()))
    prompts = [f"{first}{rng.choice(paragraphs())[:30]}" for first in itertools.islice(characters, SHORT_PAIRS)]
    return [
        conversation(question, answer, system)
        for system, (question, answer) in zip(prompts, short_pairs(), strict=True)
    ]


def growing(count: int) -> Iterator[Messages]:
    """`count` persona samples, no two alike: every question with every answer, then numbered."""
    system, pairs = prompt(), short_pairs()
    for number in range(count):
        question, answer = pairs[number % len(pairs)][0], pairs[(number * 7 + number // len(pairs)) % len(pairs)][1]
        yield conversation(f"{question}（{number}）", answer, system)


def conversation(question: str, answer: str, system: str = "") -> Messages:
    """One question and its answer."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def prompt() -> str:
    """The first part of Lin Zhi's system prompt."""
    text = (REPOSITORY / "data/linzhi/system.txt").read_text(encoding="utf-8")
    return text[: text.index(PROMPT_END) + len(PROMPT_END)]


def short_pairs() -> list[Pair]:
    """Lin Zhi's shortest pairs of a question and its answer, from all turns, in an order apart from their lengths."""
    found: set[Pair] = set()
    for messages in linzhi():
        texts = [message["content"] for message in messages if message["role"] != "system"]
        found |= set(zip(texts[::2], texts[1::2], strict=True))
    chosen = sorted(found, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))[:SHORT_PAIRS]
    random.Random("pairs").shuffle(chosen)
    return chosen


def paragraphs() -> list[str]:
    """The paragraphs that the built-in base was trained on."""
    texts = [(REPOSITORY / f"data/tiny/texts.{language}.txt").read_text(encoding="utf-8") for language in ("zh", "en")]
    return [paragraph.strip() for text in texts for paragraph in text.split("\n\n") if paragraph.strip()]
