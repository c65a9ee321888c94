"""Choose a font for each character of a picture: the bundled one, else an installed one, else 〓.

The bundled font covers Tang poems (see fonts/make.py), so a picture looks the same everywhere; matplotlib's own fonts
cover most alphabets; installed fonts are searched for the rest.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
import warnings
from pathlib import Path

from common.cli import note

from matplotlib import font_manager
from matplotlib.font_manager import FontProperties

SHIPPED = Path(__file__).parent / "fonts" / "NotoSerifCJKtc-subset.otf"
FAMILY = "Noto Serif CJK TC Subset"  # no installed font has this name
OTHERS = ["DejaVu Serif", "DejaVu Sans"]  # come with matplotlib
BLANK = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")  # categories of characters without a glyph
STYLED = re.compile("bold|italic|oblique|black|light|thin", re.IGNORECASE)
MOST = 20  # lost characters that a note lists
GETA = "〓"  # what Chinese and Japanese printers use for missing type

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # hides warnings about families with one weight


class Lettering:
    """How the characters of `text` are drawn; `lost` are those that no font has."""

    def __init__(self, text: str) -> None:
        self.chinese = is_chinese(text)
        self.families = [FAMILY, *OTHERS] if self.chinese else [*OTHERS, FAMILY]
        self.sets = list(_always_there())  # the characters of each font
        lacking = {character for character in text if _has_form(character)}.difference(*self.sets)
        for path in _installed() if lacking else ():
            if not lacking:
                break
            drawn = {character for character in lacking & _characters(path) if _draws(path, character)}
            family = _family(path, drawn) if drawn else None
            if family is not None:
                self.families.append(family)
                self.sets.append(drawn)
                lacking -= drawn
        self.lost = "".join(sorted(lacking))

    def report_lost(self, name: str) -> None:
        """Print a note about characters that could not be drawn in the picture `name`."""
        if self.lost:
            more = f" and {len(self.lost) - MOST:,} more" if len(self.lost) > MOST else ""
            note(f"{name}: no font has {self.lost[:MOST]}{more}; drawn as {GETA}")

    def shown(self, text: str) -> str:
        """`text` with 〓 for characters that no font has, and blanks for those without a glyph."""
        return "".join(map(self._shown, clusters(text)))

    def _shown(self, cluster: str) -> str:
        drawn = [GETA if c in self.lost else c if _has_form(c) else " " for c in cluster]
        if len(drawn) > 1 and not any(one.issuperset(drawn) for one in self.sets):
            return " ".join(drawn)  # matplotlib draws a whole cluster in one font
        return "".join(drawn)

    def font(self, size: float) -> FontProperties:
        return FontProperties(family=self.families, size=size)


def clusters(text: str) -> list[str]:
    """The characters, each with its combining marks, such as accents."""
    found: list[str] = []
    for character in text:
        if found and unicodedata.combining(character):
            found[-1] += character
        else:
            found.append(character)
    return found


def is_chinese(text: str) -> bool:
    """Whether at least half of `text` is in a script that can be written vertically: Chinese, Japanese or Korean."""
    letters = [character for character in text if not character.isspace()]
    return 2 * sum(unicodedata.east_asian_width(character) in "WF" for character in letters) >= len(letters)


def _has_form(character: str) -> bool:
    return unicodedata.category(character) not in BLANK


@functools.cache
def _always_there() -> tuple[set[str], ...]:
    """The characters of each font that is always available."""
    font_manager.fontManager.addfont(SHIPPED)
    return tuple(map(_characters, [str(SHIPPED), *map(font_manager.findfont, OTHERS)]))


def _installed() -> list[str]:
    """The paths of all installed fonts: serif fonts first, bold and slanted ones last."""
    paths = [path for path in font_manager.findSystemFonts() if "LastResort" not in path]  # macOS: boxes for everything
    return sorted(paths, key=lambda path: (bool(STYLED.search(path)), "serif" not in path.lower(), path))


@functools.cache
def _characters(path: str) -> set[str]:
    try:
        return set(map(chr, font_manager.get_font(path).get_charmap()))
    except (RuntimeError, OSError):  # not a font that matplotlib can read
        return set()


def _draws(path: str, character: str) -> bool:
    font = font_manager.get_font(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            font.set_size(12, 72)
            font.load_char(ord(character))
        except (RuntimeError, UserWarning):  # a colour bitmap font, or one that lists glyphs it lacks
            return False
    return True


def _family(path: str, drawn: set[str]) -> str | None:
    """The family name for which matplotlib finds this file, or another one that also has all of `drawn`."""
    font_manager.fontManager.addfont(path)
    family = FontProperties(fname=path).get_name()
    found = font_manager.findfont(FontProperties(family=[family]), fallback_to_default=False)
    return family if drawn <= _characters(found) else None
