"""The pictures: each is written, and where Chinese cannot be drawn the picture says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import figures
import matplotlib
import numpy as np
import protocol
import pytest
from matplotlib import font_manager, image
from matplotlib.figure import Figure
from poetry_helpers import png_size
from report import Start

POEMS = ["月日山，甲乙丙。", "夜甲乙丙丁，山山山。日，月。"]
LATIN = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")  # comes with matplotlib


def metrics(epochs: int, loss: float = 6.0, perplexity: float = 200.0) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": loss / epoch,
            "validation_loss": loss / epoch + 0.1,
            "validation_perplexity": perplexity / epoch,
            "report_cross_entropy": loss / epoch - 0.5,
        }
        for epoch in range(1, epochs + 1)
    ]


def check_picture(path: Path) -> None:
    width, height = png_size(path)
    assert 250 <= width <= 3000 and 200 <= height <= 3000 and path.stat().st_size > 5000
    assert image.imread(path).std() > 0.01, "nothing is drawn"


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into figures, by `Figure.text`."""
    written: list[str] = []
    text = Figure.text

    def spy(self: Figure, x: float, y: float, s: str, *arguments: Any, **options: Any) -> Any:
        written.append(s)
        return text(self, x, y, s, *arguments, **options)

    monkeypatch.setattr(Figure, "text", spy)
    return written


def fonts(monkeypatch: pytest.MonkeyPatch, *paths: str) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *arguments, **options: list(paths))


@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("reported", [None, protocol.REPORTED["adam"]])
def test_curves(tmp_path: Path, epochs: int, reported: Any) -> None:
    figures.draw_curves(tmp_path / "curves.png", metrics(epochs), reported)
    check_picture(tmp_path / "curves.png")


def test_curves_with_and_without_the_reports_crosses_differ(tmp_path: Path) -> None:
    for name, reported in (
        ("a", None),
        ("b", protocol.REPORTED["adam"]),
        ("c", protocol.REPORTED["adagrad"]),
    ):
        figures.draw_curves(tmp_path / f"{name}.png", metrics(5), reported)
    pictures = [image.imread(tmp_path / f"{name}.png") for name in "abc"]
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])


def test_curves_of_a_run_that_went_wrong_warn_of_nothing(tmp_path: Path) -> None:
    # exp(700) is the perplexity that a loss of 700 nats or more is given
    figures.draw_curves(tmp_path / "curves.png", metrics(3, loss=1e30, perplexity=1e304))
    check_picture(tmp_path / "curves.png")


def test_optimizers(tmp_path: Path) -> None:
    names = {"adam": "Adam", "adagrad": "AdaGrad", "adadelta": "Adadelta"}
    curves = {title: (metrics(4), protocol.REPORTED[name]) for name, title in names.items()}
    figures.draw_optimizers(tmp_path / "optimizers.png", curves)
    check_picture(tmp_path / "optimizers.png")


def test_starts(tmp_path: Path) -> None:
    starts = [Start("random", [6.0, 5.0], 8), Start("zero", [6.0, 5.9], 1), Start("equal", [6.0], 1)]
    figures.draw_starts(tmp_path / "starts.png", starts, 5.8)
    check_picture(tmp_path / "starts.png")


def test_columns_run_from_the_right(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
) -> None:
    places: list[float] = []
    text = Figure.text
    monkeypatch.setattr(
        Figure, "text", lambda self, x, *rest, **named: (places.append(x), text(self, x, *rest, **named))
    )
    fonts(monkeypatch, LATIN)
    figures.draw_poems(tmp_path / "poems.png", ["abcdefghijklmnopqrstu", "ABC", "DEF"])
    check_picture(tmp_path / "poems.png")
    columns = [column.replace("\n", "") for column in texts]
    assert "".join(columns) == "abcdefghijklmnopqrstuABCDEF" and max(map(len, columns)) <= 20
    assert places == sorted(places, reverse=True) and 0 < places[-1] < places[0] < 1


def test_no_character_is_lost_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(Figure, "text", lambda self, x, y, s, **options: texts.append(s))  # no glyph is drawn
    monkeypatch.setattr(figures, "chinese_font", lambda text: LATIN)
    poems = ["月。。山", "日" * 40, "夜。。"]  # a model that has learned little writes such lines
    figures.draw_poems(tmp_path / "poems.png", poems)
    assert "".join(texts).replace("\n", "") == "".join(poems)


def test_real_poems_are_drawn_where_a_font_is_installed(tmp_path: Path, texts: list[str]) -> None:
    if figures.chinese_font("".join(protocol.POEMS)) is None:
        pytest.skip("no installed font has Chinese characters")
    figures.draw_poems(tmp_path / "poems.png", protocol.POEMS)
    check_picture(tmp_path / "poems.png")
    assert "".join(texts).replace("\n", "") == "".join(protocol.POEMS)


@pytest.mark.parametrize("installed", [(), (LATIN,)], ids=["no font", "a Latin font"])
def test_without_a_chinese_font_the_picture_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], installed: tuple[str, ...]
) -> None:
    fonts(monkeypatch, *installed)
    figures.draw_poems(tmp_path / "poems.png", POEMS)  # a missing glyph is a warning, and warnings are errors
    check_picture(tmp_path / "poems.png")
    assert texts == [figures.MISSING_FONT]
    assert "no installed font has" in figures.MISSING_FONT and figures.MISSING_FONT.isascii()


def test_no_poems_at_all_are_no_error(tmp_path: Path) -> None:
    # report.py has none to draw if the corpus lacks all seven first characters, after all its training
    figures.draw_poems(tmp_path / "poems.png", [])
    png_size(tmp_path / "poems.png")


def test_a_font_must_have_every_character(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_text("no font", encoding="utf-8")
    fonts(monkeypatch, str(broken), str(tmp_path / "missing.ttf"), LATIN)
    assert figures.chinese_font("abc def") == LATIN
    assert figures.chinese_font("abc月") is None
    assert figures.chinese_font("月") is None
