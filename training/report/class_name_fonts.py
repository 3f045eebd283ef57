"""Names of classes that the installed fonts can draw, whatever script they are written in.

Where a name has a character that no font has, the plots show numbers instead of boxes, and the
report's table of classes tells which number is which. Draws nothing.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FALLBACK_FAMILIES = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Unifont",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
    "Noto Sans Thai",
    "Noto Sans Devanagari",
    "Noto Sans Hebrew",
    "Noto Emoji",
    "Symbola",
)
"""Fonts from the first choice to the last; each character is drawn with the first that has it."""


def installed_families() -> list[str]:
    """Return the fallback families that are installed, in their order."""
    installed = set(font_manager.get_font_names())
    return [family for family in FALLBACK_FAMILIES if family in installed]


def can_draw(text: str) -> bool:
    """Return whether the fonts have every character and matplotlib can lay the text out.

    It draws from left to right and joins no letters, so Arabic, Hebrew and Indic text would be
    unreadable even with the right font.
    """
    return all(
        ord(each) in _drawable()
        and unicodedata.bidirectional(each) not in ("R", "AL", "RLE", "RLO", "RLI")
        and unicodedata.category(each) not in ("Cc", "Cf", "Mc")
        for each in text
    )


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Return the names as plots show them: as they are, or "class 3" if one cannot be drawn.

    Classes are numbered from 1, in the order of the report's table.
    """
    return [
        name if can_draw(name) else f"class {number}" for number, name in enumerate(class_names, 1)
    ]


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Return the code points that the installed families have."""
    points: set[int] = set()
    for family in installed_families():
        path = font_manager.findfont(family, fallback_to_default=False)
        points.update(FT2Font(Path(path)).get_charmap())
    return frozenset(points)
