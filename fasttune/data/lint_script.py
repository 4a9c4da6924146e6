"""Chinese written in two ways: simplified and traditional characters, full-width and half-width marks and letters.

Which characters are simplified or traditional only is asked of the two national character sets: what GB 2312 has and
Big5 lacks is simplified, the other way round traditional; what both have tells nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from fasttune.console import Finding, _
from fasttune.data.dataset import Message, Sample

CHINESE = "\u4e00-\u9fff"
HALF_WIDTH = re.compile(f"[{CHINESE}][,?!;:](?=[{CHINESE}]|$)")  # a half-width mark where Chinese has a full-width one
FULL_WIDTH = re.compile(f"[{CHINESE}][，？！；：]")
WIDE_LETTERS = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]{2,}")  # full-width digits and letters
LEAST_FOREIGN = 2  # different characters of the other script: one may be a name
USUAL = 0.8  # of the marks, and of the texts: what most of them are is the data's own way


def findings(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Answers that mix scripts or widths, or that differ in them from most others."""
    texts = [(sample, message) for sample in samples for message in sample.messages if message.role == "assistant"]
    counted = [scripts(message.content) for _sample, message in texts]
    simplified = sum(len(one) > len(other) for one, other in counted)
    traditional = sum(len(other) > len(one) for one, other in counted)
    full = sum(len(FULL_WIDTH.findall(message.content)) for _sample, message in texts)
    half = sum(len(HALF_WIDTH.findall(message.content)) for _sample, message in texts)
    usual = "simplified" if simplified >= USUAL * (simplified + traditional) else ""
    usual = usual or ("traditional" if traditional >= USUAL * (simplified + traditional) else "")
    for (sample, message), counts in zip(texts, counted, strict=True):
        asked = "".join(one.content for one in sample.messages if one.role == "user")
        yield from script(sample.id, counts, usual, asked)
        yield from widths(sample.id, message, full >= USUAL * (full + half) and full > 0)


@functools.cache
def only_in_one() -> tuple[frozenset[str], frozenset[str]]:
    """The Chinese characters that are simplified only, and those that are traditional only."""
    every = map(chr, range(0x4E00, 0xA000))
    known = [(one, can_encode(one, "gb2312"), can_encode(one, "big5")) for one in every]
    simplified = frozenset(one for one, in_gb, in_big5 in known if in_gb and not in_big5)
    return simplified, frozenset(one for one, in_gb, in_big5 in known if in_big5 and not in_gb)


def can_encode(character: str, encoding: str) -> bool:
    """Whether an encoding has a character."""
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def scripts(text: str) -> tuple[set[str], set[str]]:
    """The different characters of a text that are simplified only, and those that are traditional only."""
    if text.isascii():
        return set(), set()
    characters, (simplified, traditional) = set(text), only_in_one()
    return characters & simplified, characters & traditional


def script(where: str, counts: tuple[set[str], set[str]], usual: str, asked: str) -> Iterator[Finding]:
    """An answer with characters of both scripts, or in the other one than most and than its question."""
    simplified, traditional = counts
    mixed = len(simplified) >= LEAST_FOREIGN and len(traditional) >= LEAST_FOREIGN
    foreign = {"simplified": traditional, "traditional": simplified}.get(usual, set())
    is_other = len(foreign) >= LEAST_FOREIGN and foreign is max(simplified, traditional, key=len)
    question = scripts(asked)[counts.index(foreign)] if is_other else set()
    if not mixed and (not is_other or len(question) >= LEAST_FOREIGN):
        return
    fewer = traditional if len(traditional) < len(simplified) else simplified
    shown = "".join(sorted(foreign or fewer))[:10]
    if mixed:
        what = _("the answer mixes simplified and traditional characters: {characters}", characters=shown)
    elif usual == "simplified":
        what = _("the answer is in traditional characters ({characters}), most others are in simplified ones",
                 characters=shown)  # fmt: skip
    else:
        what = _("the answer is in simplified characters ({characters}), most others are in traditional ones",
                 characters=shown)  # fmt: skip
    why = _("the model would switch between them by chance")
    yield Finding("mixed-scripts", "warning", where, what, why, _("write all answers in one of them"))


def widths(where: str, message: Message, usual_full: bool) -> Iterator[Finding]:
    """Half-width marks between Chinese characters where most are full-width, and full-width letters and digits."""
    half = HALF_WIDTH.search(message.content) if usual_full else None
    wide = WIDE_LETTERS.search(message.content)
    if half is None and wide is None:
        return
    if wide is not None:
        what = _("the answer has full-width letters or digits: '{text}'", text=wide[0])
    else:
        assert half is not None
        what = _("the answer has a half-width mark, most others are full-width: '{text}'",
                 text=message.content[max(0, half.start() - 4) : half.end() + 4])  # fmt: skip
    why = _("they are other tokens than the usual ones, and the model would mix both")
    yield Finding("mixed-widths", "info", where, what, why, _("write them like the others"))
