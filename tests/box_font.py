"""A font of boxes, made here: with it a page looks the same on every machine, whatever fonts that has.

Each character is a grey box, half an em wide and of East Asian scripts a whole em; spaces are empty. The tables are
those of OpenType 1.9 that a browser demands; format 13 of `cmap` maps whole ranges of characters to one glyph.
"""

from __future__ import annotations

import base64
import struct

EM, ASCENT, DESCENT = 1000, 800, -200
NARROW, WIDE, EMPTY = 1, 2, 3  # glyphs; 0 is that of a character without one
WIDTHS = (EM, EM // 2, EM, EM // 2)
# (first, last, glyph), in order.
RANGES = (
    (0x20, 0x20, EMPTY),
    (0x21, 0x9F, NARROW),
    (0xA0, 0xA0, EMPTY),
    (0xA1, 0x10FF, NARROW),
    (0x1100, 0x11FF, WIDE),
    (0x1200, 0x2E7F, NARROW),
    (0x2E80, 0x2FFF, WIDE),
    (0x3000, 0x3000, EMPTY),
    (0x3001, 0xD7FF, WIDE),
    (0xF900, 0xFAFF, WIDE),
    (0xFB00, 0xFEFF, NARROW),
    (0xFF00, 0xFFEF, WIDE),
    (0x10000, 0x1EFFF, NARROW),
    (0x1F000, 0x3FFFD, WIDE),
)


def style() -> str:
    """The style sheet that shows a page in boxes."""
    data = base64.b64encode(font()).decode("ascii")
    return (
        f"@font-face{{font-family:boxes;font-weight:1 1000;src:url(data:font/ttf;base64,{data})}}"
        "*,*::before,*::after{font-family:boxes!important;font-synthesis:none!important;transition:none!important;"
        "animation:none!important;caret-color:transparent!important}"
    )


def font() -> bytes:
    """The font file."""
    glyphs = [box(EM), box(EM // 2), box(EM), b""]
    offsets = [sum(map(len, glyphs[:n])) for n in range(len(glyphs) + 1)]
    tables = {
        b"OS/2": os2(),
        b"cmap": cmap(),
        b"glyf": b"".join(glyphs),
        b"head": struct.pack(">IIIIHHqqhhhhHHhhh", 0x10000, 0x10000, 0, 0x5F0F3CF5, 3, EM, 0, 0, 0, DESCENT, EM, ASCENT, 0, 8, 2, 1, 0),
        b"hhea": struct.pack(">IhhhHhhhhhh8xhH", 0x10000, ASCENT, DESCENT, 0, EM, 0, 0, EM, 1, 0, 0, 0, len(glyphs)),
        b"hmtx": b"".join(struct.pack(">Hh", width, 0) for width in WIDTHS),
        b"loca": b"".join(struct.pack(">I", one) for one in offsets),
        b"maxp": struct.pack(">IHHHHHHHHHHHHHH", 0x10000, len(glyphs), 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
        b"name": name("boxes"),
        b"post": struct.pack(">IIhhIIIII", 0x30000, 0, -100, 50, 0, 0, 0, 0, 0),
    }  # fmt: skip
    place = 12 + 16 * len(tables)
    directory, body = b"", b""
    for tag, table in tables.items():
        padded = table + b"\0" * (-len(table) % 4)
        directory += struct.pack(">4sIII", tag, checksum(padded), place + len(body), len(table))
        body += padded
    return struct.pack(">IHHHH", 0x10000, len(tables), 128, 3, 16 * len(tables) - 128) + directory + body


def box(advance: int) -> bytes:
    """The outline of a box within its advance, in the lower part of the line as most letters are."""
    left, right, top = 60, advance - 60, 560
    xs, ys = (left, 0, right - left, 0), (0, top, 0, -top)
    outline = struct.pack(">hhhhhHH4B4h4h", 1, left, 0, right, top, 3, 0, 1, 1, 1, 1, *xs, *ys)
    return outline + b"\0" * (-len(outline) % 4)


def cmap() -> bytes:
    """Which glyph each character has."""
    groups = b"".join(struct.pack(">III", *one) for one in RANGES)
    table = struct.pack(">HHIII", 13, 0, 16 + len(groups), 0, len(RANGES)) + groups
    return struct.pack(">HHHHI", 0, 1, 3, 10, 12) + table


def os2() -> bytes:
    """Metrics and classes, version 4."""
    return struct.pack(
        ">HhHHHhhhhhhhhhhh10s4I4sHHHhhhHHIIhhHHH",
        4, EM // 2, 400, 5, 0, 650, 600, 0, 75, 650, 600, 0, 350, 50, 250, 0, b"\0" * 10, 0, 0, 0, 0, b"test", 0x40,
        0x20, 0xFFFF, ASCENT, DESCENT, 0, ASCENT, -DESCENT, 1, 0, 500, 560, 0, 0x20, 0,
    )  # fmt: skip


def name(text: str) -> bytes:
    """The names that a font must have."""
    encoded = text.encode("utf-16-be")
    records = b"".join(struct.pack(">HHHHHH", 3, 1, 0x409, id, len(encoded), 0) for id in (1, 2, 4, 6))
    return struct.pack(">HHH", 0, 4, 6 + len(records)) + records + encoded


def checksum(table: bytes) -> int:
    """The sum of a table's words."""
    return sum(struct.unpack(f">{len(table) // 4}I", table)) & 0xFFFFFFFF
