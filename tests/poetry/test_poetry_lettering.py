"""The bundled font has the characters that poems need; others are drawn with an installed font, or reported."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import lettering
from common.cli import PRETRAINED
from common.lettering import FAMILY, SHIPPED, Lettering
from model import load_model
from verse import request

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from poetry_helpers import PROGRAMS, never

RARE, RARER = "\U0002a700", "\U0002a701"  # printable, and in no font that comes along
BEYOND = set("𫛳𦶟𫏐𫗪𫛶𪭢𫐌𣨼𣃁𫛸𫛛𥮾迳")  # simplified forms that Noto lacks; the last is of OpenCC before 1.2


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The fonts that are installed."""
    paths: list[Path] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *arguments, **options: list(map(str, paths)))
    return paths


def made_font(path: Path, family: str, characters: Iterable[str], style: str = "Regular") -> Path:
    """A font in which every character is the same square."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(100, 0), (100, 800), (900, 800), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"u{ord(character):X}" for character in characters)]
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(character): f"u{ord(character):X}" for character in characters})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": style})
    font.setupOS2(usWeightClass=700 if style == "Bold" else 400)
    font.setupPost()
    font.save(path)
    return path


def draw(found: Lettering, text: str) -> None:
    """As a picture does; a glyph that is missing is a warning."""
    figure = Figure()
    figure.text(0.5, 0.5, found.shown(text), font=found.font(12), parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())


def test_the_font_that_comes_along_has_what_poems_need_and_is_small() -> None:
    has = lettering._characters(str(SHIPPED))
    _, vocabulary, _ = load_model(PRETRAINED)
    known = "".join(token for token in vocabulary.tokens if len(token) == 1)
    tables = "".join(
        (PROGRAMS / "verse" / name).read_text(encoding="utf-8") for name in ("pingshui.txt", "variants.txt")
    )
    keyboard = "".join(map(chr, range(0x20, 0x7F)))
    for text in (known, tables.replace("\n", ""), keyboard, "，。、；：？！「」『』（）《》〈〉…—〓○●"):
        assert "".join(sorted(set(text) - has)) == ""
    assert set(request.convert(known, "t2s")) - has <= BEYOND
    assert SHIPPED.stat().st_size < 4_000_000


def test_its_licence_lies_beside_it_and_its_name_is_its_own() -> None:
    licence = (SHIPPED.parent / "OFL.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence and "Copyright 2017-2022 Adobe" in licence
    lettering._always_there()
    found = font_manager.findfont(font_manager.FontProperties(family=FAMILY), fallback_to_default=False)
    assert Path(found) == SHIPPED


def test_an_installed_font_draws_what_the_others_lack(system: list[Path], tmp_path: Path) -> None:
    system += [
        tmp_path / "gone.ttf",
        made_font(tmp_path / "useless.ttf", "Useless", "a"),
        made_font(tmp_path / "one.ttf", "One", RARE),
        made_font(tmp_path / "both.ttf", "Both-ExtB", RARE + RARER),  # as Windows names its fonts of rare characters
    ]
    (tmp_path / "broken.ttf").write_text("no font", encoding="utf-8")
    system.insert(0, tmp_path / "broken.ttf")
    found = Lettering(f"月{RARE}山{RARER}")
    assert found.lost == "" and found.families[:2] == [FAMILY, "DejaVu Serif"]
    assert "Both-ExtB" in found.families and "Useless" not in found.families
    assert found.shown(f"月{RARE}") == f"月{RARE}"
    draw(found, f"月{RARE}山{RARER}")


def test_a_face_that_another_of_its_family_hides_is_not_counted_on(system: list[Path], tmp_path: Path) -> None:
    system += [
        made_font(tmp_path / "a-bold.ttf", "Two Faces", RARER, "Bold"),
        made_font(tmp_path / "b-regular.ttf", "Two Faces", RARE),
    ]
    for path in system:
        font_manager.fontManager.addfont(path)
    found = Lettering(f"月{RARE}{RARER}")
    assert found.lost == RARER and "Two Faces" in found.families
    draw(found, f"月{RARE}{RARER}")


def test_a_plain_face_is_preferred_and_nothing_is_logged(
    system: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bold = made_font(tmp_path / "A-Bold.ttf", "Preferred", RARE, "Bold")
    system += [bold, made_font(tmp_path / "A-Regular.ttf", "Preferred", RARE)]
    assert [Path(path).name for path in lettering._installed()] == ["A-Regular.ttf", "A-Bold.ttf"]
    assert Lettering(RARE).lost == ""
    system[:] = [made_font(tmp_path / "B-Bold.ttf", "Bold Alone", RARER, "Bold")]
    assert Lettering(RARER).lost == ""
    draw(Lettering(RARER), RARER)
    assert caplog.records == []


def test_a_copy_of_a_font_that_is_found_first_is_as_good(system: list[Path], tmp_path: Path) -> None:
    first, second = (made_font(tmp_path / f"{name}.ttf", "Copied", RARE) for name in "ab")
    font_manager.fontManager.addfont(first)
    system.append(second)
    assert Lettering(RARE).lost == ""


def test_a_font_that_lists_more_than_it_draws_is_passed_over(
    system: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = made_font(tmp_path / "pictures.ttf", "Pictures", RARE)
    boxes = made_font(tmp_path / "LastResort.otf", "Boxes", RARE)  # what macOS calls a font of boxes alone
    system += [pictures, boxes]
    opened = font_manager.get_font

    def get_font(path: str) -> Any:
        font = opened(path)
        if Path(path) != pictures:
            return font
        return SimpleNamespace(get_charmap=font.get_charmap, set_size=no_such_size)  # as of a font of coloured pictures

    def no_such_size(*size: float) -> None:
        raise RuntimeError("In FT2Font: Could not set the fontsize (invalid pixel size; error code 0x17)")

    monkeypatch.setattr(font_manager, "get_font", get_font)
    assert Lettering(RARE).lost == RARE


def test_no_font_is_opened_once_nothing_is_lacking(
    system: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system += [made_font(tmp_path / "a.ttf", "First", RARE), made_font(tmp_path / "b.ttf", "Second", RARE)]
    looked: list[str] = []
    characters = lettering._characters

    def noted(path: str) -> set[str]:
        looked.append(path)
        return characters(path)

    monkeypatch.setattr(lettering, "_characters", noted)
    assert Lettering(RARE).families[-1] == "First"
    assert str(system[0]) in looked and str(system[1]) not in looked


def test_the_system_is_asked_only_where_something_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", never("the fonts of the system"))
    assert Lettering("月 abc łé\t סלם سلام ❤").lost == ""


@pytest.mark.parametrize(
    ("text", "chinese"),
    [("月日。", True), ("The moon", False), ("月 moon", False), ("月夜風山 moon", True), ("", True), ("한국어", True)],
)
def test_what_may_run_from_the_top_down(text: str, chinese: bool) -> None:
    assert lettering.is_chinese(text) == chinese
    assert Lettering(text).families[0] == (FAMILY if chinese else "DejaVu Serif")


@pytest.mark.parametrize("text", ["月\u0301", f"{RARE}\u0301", "か\u3099", "x\u0323\u0302", "月\u0301\u3099", "\u0301"])
def test_what_combines_is_drawn_from_one_font_or_apart(system: list[Path], text: str) -> None:
    found = Lettering(f"山{text}夜")
    draw(found, f"山{text}夜")
    apart = "月" in text or RARE in text
    assert found.shown(text) == (" ".join(text.replace(RARE, "〓")) if apart else text)


def test_what_has_no_form_is_blank() -> None:
    text = "月\t\x00\u200d\u3000\u2028夜"
    assert Lettering(text).shown(text) == "月     夜" and Lettering(text).lost == ""


def test_what_is_newer_than_python_or_of_ones_own_is_looked_for(system: list[Path], tmp_path: Path) -> None:
    unknown = "\ue000\U0001fa7f"  # private, and unassigned
    assert Lettering(unknown).lost == unknown and Lettering(unknown).shown(unknown) == "〓〓"
    system.append(made_font(tmp_path / "own.ttf", "Own", unknown))
    assert Lettering(unknown).lost == ""
