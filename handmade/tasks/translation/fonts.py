"""Fonts for pictures with Japanese in them, or any other script: no character is drawn as an empty box.

    for text, font in lettered(["私", "は", "cats"]):
        axes.text(x, y, text, fontproperties=font)

matplotlib's own font has no Japanese, and a character that a font lacks is drawn as a box. So each text is given a
font that has its characters: matplotlib's usual one, an installed one, or the one inside the package
`matplotlib-fontja`. That package changes the settings of matplotlib when it is imported, so it never is: its file is
looked up. No setting of matplotlib is changed here either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unicodedata import category

from handmade.errors import optional

PACKAGE, FILE = "matplotlib_fontja", "fonts/ipaexg.ttf"

# Families made for Japanese, tried before any other that is installed: a Chinese font has most of the characters too,
# but draws some of them another way.
JAPANESE = (
    *(
        "Noto Sans CJK JP",
        "Noto Sans JP",
        "Source Han Sans JP",
        "IPAexGothic",
        "IPAPGothic",
        "IPAGothic",
        "BIZ UDPGothic",
    ),
    *("Hiragino Sans", "Hiragino Kaku Gothic ProN", "Hiragino Maru Gothic Pro", "Yu Gothic", "Meiryo", "MS Gothic"),
    *("TakaoPGothic", "TakaoGothic", "VL PGothic", "VL Gothic", "Droid Sans Japanese", "Noto Serif CJK JP"),
)

# These say that they have every character, and draw a box, or nothing, for each. One of them comes with matplotlib.
EMPTY = ("last resort", "lastresort", "blank", "notdef")

CODE = set("U+0123456789ABCDEF")

# What the font of the package has: punctuation and kana, Chinese characters, full-width and narrow forms.
RANGES = ((0x3000, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF))


def lettered(texts: Sequence[str]) -> list[tuple[str, Any]]:
    """Each text as it can be drawn, and a matplotlib FontProperties to draw it with.

    One font for all texts where one has all their characters, so that they look alike; else one for each text. A
    character that no font has, or that cannot be seen, stands as its code point: `U+E000`.
    Raises ResourceError for Japanese characters that no installed font has, where the package is missing.
    """
    path = covering(set().union(*map(wanted, texts)))
    if path is not None:
        return [(spelt(text, path), font_of(path)) for text in texts]
    return [_alone(text) for text in texts]


def _alone(text: str) -> tuple[str, Any]:
    """A text with the font that has most of it."""
    needed = wanted(text)
    path = covering(needed)
    if path is None:
        path = max((one for one in candidates() if has(one, CODE) == CODE), key=lambda one: len(has(one, needed)))
        lacking = needed - has(path, needed)
        if package_font() is None and any(low <= ord(letter) <= high for letter in lacking for low, high in RANGES):
            raise optional("matplotlib-fontja", "translation", f"a picture with {text!r}, which no installed font has,")
    return spelt(text, path), font_of(path)


def font_of(path: str) -> Any:
    """A FontProperties for a file; for the usual one without its name, so that it can be made bold."""
    from matplotlib.font_manager import FontProperties

    return FontProperties() if path == usual() else FontProperties(fname=path)


def emboldened(font: Any, text: str) -> Any:
    """The bold one where there is one that has all of the text, else the font itself."""
    from matplotlib.font_manager import findfont

    if font.get_file() is not None:
        return font
    bold = font.copy()
    bold.set_weight("bold")
    return bold if has(str(findfont(bold)), set(text)) == set(text) else font


def usual() -> str:
    """The file of matplotlib's usual font."""
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties()))


def wanted(text: str) -> set[str]:
    """The characters that a font has to have to draw a text: of code points too, where something cannot be seen."""
    seen = {letter for letter in text if visible(letter)}
    return seen if seen == set(text) else seen | CODE


def spelt(text: str, path: str) -> str:
    """With code points for what the font lacks and for what cannot be seen."""
    there = has(path, set(text))
    return "".join(letter if letter in there and visible(letter) else f"U+{ord(letter):04X}" for letter in text)


def visible(letter: str) -> bool:
    """Whether a font can draw it: no control character, nothing unassigned, no half of a pair."""
    return letter == " " or category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def covering(needed: set[str]) -> str | None:
    """The first font that has all these characters."""
    return next((path for path in candidates() if has(path, needed) == needed), None)


def candidates() -> Iterator[str]:
    """Files of fonts, the one to be preferred first: the usual one, Japanese ones, that of the package, all others."""
    first = usual()
    yield first
    files = installed()
    for family in JAPANESE:
        yield from files.pop(family, [])[:1]
    package = package_font()
    if package is not None:
        yield package
    for paths in files.values():
        yield from (path for path in paths if path != first)


def installed() -> dict[str, list[str]]:
    """Files of the fonts that matplotlib knows of, by family; upright ones of usual weight first."""
    from matplotlib.font_manager import fontManager

    families: dict[str, list[tuple[int, str]]] = {}
    for entry in fontManager.ttflist:
        if any(word in entry.name.lower() for word in EMPTY):
            continue
        weight = entry.weight if isinstance(entry.weight, int) else 700
        plain = abs(weight - 400) + 1000 * (entry.style != "normal")
        families.setdefault(entry.name, []).append((plain, str(entry.fname)))
    return {name: [path for _, path in sorted(files)] for name, files in families.items()}


def package_font() -> str | None:
    """The font of `matplotlib-fontja`, or None where that is not installed. The package is not imported."""
    found = find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    files = [Path(place) / FILE for place in places or ()]
    return next((str(path) for path in files if path.is_file()), None)


def has(path: str, letters: set[str]) -> set[str]:
    """Those of the letters that the font has a glyph for, by its own table. None for a file that is no such font."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return set()
    # A font of bitmaps, as colour emoji often are, cannot be drawn in any size.
    return {letter for letter in letters if font.get_char_index(ord(letter))} if font.scalable else set()
