"""Whether an answer holds a phrase, whatever its widths, its spaces and the numerals it is written with.

`normalised` brings both texts into one form: Unicode NFKC, no capitals, no quotation marks, no spaces but between
letters or digits of ASCII, and Chinese numerals as digits ("二百一十二" and "212" are the same, "四千二" is 4200).
"""

from __future__ import annotations

import re
import unicodedata

CHINESE = re.compile("[\u4e00-\u9fff]")  # a Chinese character
DIGITS = dict(zip("〇零一二两三四五六七八九", "001223456789", strict=True))
NUMERAL = re.compile(f"[{''.join(DIGITS)}十百千万]+")
NUMBER = re.compile("(?:(D)千)?零?(?:(D)百)?零?(?:(D?)(十))?零?(D?)".replace("D", "[一二两三四五六七八九]"))
QUOTES = re.compile("[\"'“”‘’„‟«»《》〈〉「」『』`*]")
SPACE = re.compile(r"(?<![0-9a-z]) | (?![0-9a-z])")  # one that does not stand between letters or digits


def normalised(text: str) -> str:
    """The text in the form in which phrases are compared."""
    text = QUOTES.sub("", unicodedata.normalize("NFKC", text).casefold())
    text = NUMERAL.sub(lambda found: digits(found[0]), text)
    return SPACE.sub("", " ".join(text.split()))


def holds(text: str, phrase: str) -> bool:
    """Whether a normalised text holds a normalised phrase; a number or an English word only as a whole one."""
    start = r"(?<![0-9])" if phrase[:1].isdigit() else r"(?<![a-z])" if phrase[:1].isascii() else ""
    end = r"(?![0-9])" if phrase[-1:].isdigit() else r"(?![a-z])" if phrase[-1:].isascii() else ""
    return bool(phrase) and re.search(start + re.escape(phrase) + end, text) is not None


def digits(numeral: str) -> str:
    """A Chinese numeral as digits: 一九八三 is 1983, 二十六 is 26; one that is no number (万一, 千百) as it is."""
    if all(one in DIGITS for one in numeral):
        return "".join(DIGITS[one] for one in numeral)
    head, ten_thousand, tail = numeral.partition("万")
    high, low = below_ten_thousand(head), below_ten_thousand(tail, tenths=1000) if tail else 0
    if not ten_thousand:
        return str(high or numeral)
    return numeral if not high or low is None else str(high * 10_000 + low)


def below_ten_thousand(numeral: str, tenths: int = 1) -> int | None:
    """The value of a numeral without 万, None where it is none.

    A last digit without a unit counts tenths of the unit before it (四千二 is 4200, 一百二 is 120); `tenths` are those
    of what stands before the numeral.
    """
    found = NUMBER.fullmatch(numeral)
    if not numeral or found is None:
        return None
    thousands, hundreds, tens, ten, last = found.groups()
    scale = 1 if ten or "零" in numeral else 10 if hundreds else 100 if thousands else tenths
    return (
        1000 * int(DIGITS[thousands or "零"])
        + 100 * int(DIGITS[hundreds or "零"])
        + 10 * int(DIGITS[tens or ("一" if ten else "零")])
        + scale * int(DIGITS[last or "零"])
    )
