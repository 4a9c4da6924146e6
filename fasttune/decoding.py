"""Text of bytes: UTF-8, or what Windows in China writes. What is neither is refused, with the first byte of it."""

from __future__ import annotations

import codecs
from typing import Literal

WIDE_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE's begins with UTF-16-LE's
# The commonest characters and punctuation of Chinese: about half of any text; first simplified, then the traditional
# forms that differ. Of Big5, EUC-JP or EUC-KR bytes that are decoded as GB18030 they are an eighth at most.
FREQUENT = frozenset(
    "的一是了我不在人有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后"
    "小么心多天能好都然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面公同三已老从动两长知样"
    "现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿，。？！、：；“”"
    "這來個國說們為時過學對裡後麼於還發當無開見經頭動兩長樣現將與進實點種聲話兒沒會著妳"
)
FREQUENT_HANGUL = frozenset(
    "이다는을가에하고지도의한를기은로나사어리서자아시대그인해들라일스만여정보있것요수네안세습니까오"
)


class UndecodableText(Exception):
    """Bytes that are neither UTF-8 nor Chinese text in GB18030.

    `is_wide` is true for UTF-16 and UTF-32. `byte` is the first byte that is not UTF-8, on line `line` (from 1).
    """

    def __init__(self, *, is_wide: bool = False, line: int = 1, byte: int = 0) -> None:
        super().__init__("UTF-16 or UTF-32" if is_wide else f"line {line}: byte 0x{byte:02X}")
        self.is_wide, self.line, self.byte = is_wide, line, byte


def decode_text(raw: bytes) -> tuple[str, Literal["utf-8", "gb18030"]]:
    """The text of a file's bytes and their encoding: UTF-8 with or without BOM, else GB18030 where that is Chinese.

    GB18030, with its subsets GBK and GB2312, is what Windows editors in China write; Big5, Latin-1 and Korean bytes can
    often be decoded as GB18030 too, and become garbled text. Raises UndecodableText for them and for UTF-16.
    """
    if raw.startswith(WIDE_BOMS) or raw[:400].count(0) > len(raw[:400]) // 4:
        raise UndecodableText(is_wide=True)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode(), "utf-8"
    except UnicodeDecodeError as failure:
        start = failure.start
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        text = ""
    if not reads_like_chinese(text, raw):
        raise UndecodableText(line=raw.count(b"\n", 0, start) + 1, byte=raw[start])
    return text, "gb18030"


def reads_like_chinese(text: str, raw: bytes) -> bool:
    """Whether text that was decoded from `raw` as GB18030 is Chinese, simplified or traditional.

    It is where a quarter of its non-ASCII characters are among the most frequent ones. A short text or a list of nouns
    may hold none of them ("定影液显影"): there, four fifths have to be everyday characters, and the bytes must not read
    like Korean, whose syllables have the same codes in EUC-KR.
    """
    foreign = [character for character in text if not character.isascii()]
    if sum(character in FREQUENT for character in foreign) >= max(1, 0.25 * len(foreign)):
        return True
    everyday = sum(map(is_everyday, foreign))
    return len(foreign) >= 2 and everyday >= 0.8 * len(foreign) and not reads_like_korean(raw)


def is_everyday(character: str) -> bool:
    """Whether a character is in the first level of GB2312 (3,755 common characters) or among its punctuation."""
    lead = character.encode("gb2312", "ignore")[:1]
    return b"\xb0" <= lead <= b"\xd7" or b"\xa1" <= lead <= b"\xa3" or character in FREQUENT


def reads_like_korean(raw: bytes) -> bool:
    """Whether a fifth of the non-ASCII characters that the bytes are in EUC-KR are the most frequent syllables."""
    try:
        foreign = [character for character in raw.decode("euc_kr") if not character.isascii()]
    except UnicodeDecodeError:
        return False
    return sum(character in FREQUENT_HANGUL for character in foreign) >= 0.2 * len(foreign)
