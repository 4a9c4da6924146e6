"""The one decoder of text, for recipes and data alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttune.console import UsageError
from fasttune.data.reader import read_records
from fasttune.decoding import UndecodableText, decode_text
from fasttune.recipe.toml_file import read_toml

TRADITIONAL = "妳是林芝，說話溫柔體貼，請稱呼對方為閣下"
KOREAN = "안녕하세요. 저는 지수예요. 오늘은 비가 와서 집에서 책을 읽고 있어요."
JAPANESE = "こんにちは。私は林と申します。今日は天気がいいので、海辺まで散歩に行きましょう。"
CHINESE = [
    ("定影液显影", "utf-8"),
    ("定影液显影", "utf-8-sig"),
    ("定影液显影", "gb18030"),  # none of them frequent
    ("锅碗瓢盆勺筷刀叉盘碟杯壶瓶罐缸桶篮筐箱柜", "gb18030"),
    ("你好", "gb18030"),
    ("是", "gb18030"),
    ("你是林芝，说话温柔。", "gbk"),
    ("你是林芝，说话温柔。", "gb2312"),
    (TRADITIONAL, "utf-8"),
    (TRADITIONAL, "gb18030"),
    ("你好，我喜歡在下雨的時候看書，也喜歡和朋友們去海邊🐼。", "gb18030"),
    (KOREAN, "utf-8"),
    ("Café naïve größe", "utf-8"),
]
REFUSED = [
    (TRADITIONAL, "big5"),
    ("你好", "big5"),
    ("定影液", "big5"),
    ("Café naïve größe", "latin-1"),
    ("Müller", "latin-1"),
    ("AÇÃO", "latin-1"),
    ("привет мир", "koi8-r"),
    (KOREAN, "euc-kr"),
    ("네", "euc-kr"),
    ("감사합니다", "euc-kr"),
    (JAPANESE, "euc-jp"),
    ("こんにちは", "euc-jp"),
    (JAPANESE, "shift-jis"),
    (TRADITIONAL, "utf-16"),
    ("Café", "utf-16-le"),  # without BOM
    ("Café", "utf-32"),
]


def recipe_text(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """The text that a recipe of these bytes holds, and the codes of the findings about it."""
    path.write_bytes(raw)
    try:
        return str(read_toml(path)[0]["system"]), []
    except UsageError as refusal:
        return "", [finding.code for finding in refusal.findings]


def data_text(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """The text that a data file of these bytes holds, and the codes of the findings about it."""
    path.write_bytes(raw)
    records, findings = read_records(str(path))
    return "".join(record.value["system"] for record in records), [finding.code for finding in findings]


@pytest.mark.parametrize(("text", "encoding"), CHINESE)
def test_text_is_read_alike_in_recipes_and_data(text: str, encoding: str, tmp_path: Path) -> None:
    is_utf8 = encoding.startswith("utf-8")
    assert decode_text(text.encode(encoding)) == (text, "utf-8" if is_utf8 else "gb18030")
    assert recipe_text(tmp_path / "a.toml", f'system = "{text}"\n'.encode(encoding)) == (text, [])
    notes = [] if is_utf8 else ["gb18030"]
    assert data_text(tmp_path / "a.jsonl", f'{{"system": "{text}"}}\n'.encode(encoding)) == (text, notes)


@pytest.mark.parametrize(("text", "encoding"), REFUSED)
def test_other_encodings_are_refused_alike_in_recipes_and_data(text: str, encoding: str, tmp_path: Path) -> None:
    with pytest.raises(UndecodableText) as caught:
        decode_text(text.encode(encoding))
    is_wide = encoding.startswith(("utf-16", "utf-32"))
    assert caught.value.is_wide is is_wide
    assert recipe_text(tmp_path / "a.toml", f'system = "{text}"\n'.encode(encoding)) == ("", ["recipe-encoding"])
    codes = ["utf-16" if is_wide else "unknown-encoding"]
    assert data_text(tmp_path / "a.jsonl", f'{{"system": "{text}"}}\n'.encode(encoding)) == ("", codes)


def test_the_first_byte_that_is_not_utf8_is_named() -> None:
    with pytest.raises(UndecodableText) as caught:
        decode_text("首行\n".encode("utf-8-sig") + b"second \xff\n")
    assert (caught.value.line, caught.value.byte) == (2, 0xFF)


def test_no_bytes_are_no_text() -> None:
    assert decode_text(b"") == decode_text(b"\xef\xbb\xbf") == ("", "utf-8")
