"""The pictures: each is written, has a largest size, and no character of it is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import figures
from learning import protocol
from verse.explaining import Runner, Thought
from verse.explaining_picture import draw_thoughts, lines_of

import numpy as np
import pytest
from matplotlib import font_manager, image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from poetry_helpers import never, png_size
from report import Start


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
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """What is written into figures."""
    written: list[Text] = []
    for owner in (Figure, Axes):
        text = owner.text

        def spy(self: Any, *arguments: Any, write: Any = text, **options: Any) -> Text:
            written.append(write(self, *arguments, **options))
            return written[-1]

        monkeypatch.setattr(owner, "text", spy)
    return written


def contents(texts: Sequence[Text]) -> list[str]:
    return [text.get_text().replace("\n", "") for text in texts]


def fonts(monkeypatch: pytest.MonkeyPatch, *paths: object) -> None:
    """Those of the system."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *arguments, **options: list(map(str, paths)))


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


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_epochs_are_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, *rest: drawn.append(figure))
    figures.draw_curves(tmp_path / "curves.png", metrics(epochs))
    figures.draw_optimizers(
        tmp_path / "curves.png",
        {name: (metrics(epochs), protocol.REPORTED[name]) for name in ("adam", "adagrad", "adadelta")},
    )
    for figure in drawn:
        figure.canvas.draw()
        for axes in figure.axes:
            ticks = [label.get_text() for label in axes.get_xticklabels()]
            assert ticks and all(tick.lstrip("\N{MINUS SIGN}").isdigit() for tick in ticks), ticks


# Pages of poems


def test_columns_run_from_the_right(tmp_path: Path, texts: list[Text]) -> None:
    figures.draw_poems(tmp_path / "poems.png", ["甲乙丙丁日月山夜紅" * 3, "甲乙", "丁日月"])
    check_picture(tmp_path / "poems.png")
    assert contents(texts) == ["甲乙丙丁日月山夜紅甲乙丙丁日月山", "夜紅甲乙丙丁日月山夜紅", "", "甲乙", "", "丁日月"]
    places = [text.get_position()[0] for text in texts]
    assert places == sorted(places, reverse=True) and 0 < places[-1] < places[0] < 1


def test_no_character_is_lost_on_the_page(tmp_path: Path, texts: list[Text]) -> None:
    poems = ["月。。山", "日" * 40, "夜$。。$"]  # a model that has learned little writes such lines
    figures.draw_poems(tmp_path / "poems.png", poems)
    assert not any(text.get_parse_math() for text in texts)
    assert "".join(contents(texts)) == "".join(poems)


def test_a_wide_page_continues_below(tmp_path: Path, texts: list[Text], capsys: pytest.CaptureFixture[str]) -> None:
    poems = ["甲乙丙丁，日月山夜。" * 20] * 7  # as long as a line of a text may be
    figures.draw_poems(tmp_path / "poems.png", poems)
    width, height = png_size(tmp_path / "poems.png")
    assert width == 1536 and height < 2500 and image.imread(tmp_path / "poems.png")[-height // 8 :].std() > 0.01
    assert "".join(contents(texts)) == "".join(poems)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("poem", "size", "left_out"),
    [
        ("山" * 6000, (1536, 7344), "240"),  # 12 bands of 30 columns of 16 characters
        ("The river runs to the sea. " * 900, None, "6,922"),  # 240 lines
        ("。" * 700, (1536, 1224), None),
    ],
    ids=["columns", "lines", "stops"],
)
def test_a_page_has_a_largest_size_and_says_what_it_left_out(
    tmp_path: Path,
    texts: list[Text],
    capsys: pytest.CaptureFixture[str],
    poem: str,
    size: tuple[int, int] | None,
    left_out: str | None,
) -> None:
    figures.draw_poems(tmp_path / "poems.png", [poem])
    found = png_size(tmp_path / "poems.png")
    assert found == size or (size is None and 700 < found[0] < 900 and 7500 < found[1] < 7600)
    drawn = "".join("".join(contents(texts)).split())
    assert poem.replace(" ", "").startswith(drawn)
    if left_out is None:
        assert capsys.readouterr().err == "" and len(drawn) == len(poem)
    else:
        assert capsys.readouterr().err == f"poems.png has no room for {left_out} more characters\n"


def test_other_scripts_are_written_in_lines_that_break_between_words(tmp_path: Path, texts: list[Text]) -> None:
    poems = [
        "It was the best of times, it was the worst of times; " * 3,
        "two $dollars$ and \\alpha",
        "Łódź déjà ΕΛΛΑΔΑ",
    ]
    figures.draw_poems(tmp_path / "poems.png", [*poems, "W" * 200])
    check_picture(tmp_path / "poems.png")
    lines = contents(texts)
    assert lines[:4] == [
        "It was the best of times, it was the worst of times; It was the best of",
        "times, it was the worst of times; It was the best of times, it was the",
        "worst of times;",
        "",
    ]
    assert poems[1] in lines and poems[2] in lines
    assert not any(text.get_parse_math() for text in texts), "dollars are no formulas"
    heights = [text.get_position()[1] for text in texts]
    assert heights == sorted(heights, reverse=True)
    picture = image.imread(tmp_path / "poems.png")
    assert (picture[:, -20:] == picture[0, 0]).all(), "nothing is cut off on the right"


def test_a_page_needs_no_installed_font(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[Text], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", never("the fonts of the system"))
    figures.draw_poems(tmp_path / "poems.png", protocol.POEMS)
    check_picture(tmp_path / "poems.png")
    assert "".join(contents(texts)) == "".join(protocol.POEMS) and capsys.readouterr().err == ""


def test_what_no_font_has_is_drawn_as_a_mark_and_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[Text], capsys: pytest.CaptureFixture[str]
) -> None:
    fonts(monkeypatch, tmp_path / "missing.ttf")
    poems = ["月日\U0001fab7山\t", "夜\U0010fffd\U0001fab7。"]
    figures.draw_poems(tmp_path / "poems.png", poems)  # a missing glyph is a warning, and warnings are errors
    png_size(tmp_path / "poems.png")
    assert contents(texts) == ["月日〓山 ", "", "夜〓〓。"]
    assert capsys.readouterr().err == "poems.png: no font has \U0001fab7\U0010fffd; drawn as 〓\n"


def test_the_characters_that_are_named_are_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fonts(monkeypatch)
    figures.draw_poems(tmp_path / "poems.png", ["".join(map(chr, range(0x2A700, 0x2A700 + 1020)))])
    (line,) = capsys.readouterr().err.splitlines()
    assert " and 999 more; " in line and len(line) < 100  # one of them is in the corpus, and so in the font


def test_accents_stay_with_their_letters(tmp_path: Path, texts: list[Text]) -> None:
    poem = "か\u3099き\u3099春x\u0323\u0302月"  # as macOS writes them, and one that has no single form
    figures.draw_poems(tmp_path / "poems.png", [poem])
    assert [text.get_text() for text in texts] == ["が\nぎ\n春\nx\u0323\u0302\n月"]


def test_no_poems_at_all_are_no_error(tmp_path: Path) -> None:
    # report.py has none to draw if the corpus lacks all seven first characters, after all its training
    figures.draw_poems(tmp_path / "poems.png", [])
    png_size(tmp_path / "poems.png")


# What the model thought


def thought(character: str, *others: str, rule: str = "") -> Thought:
    return Thought(character, 0.523, 1, [Runner(other, 0.123, other != "(end)") for other in others], 0.25, rule)


def test_a_text_without_marks_is_wrapped(tmp_path: Path) -> None:
    found = [thought("山", "月", "(end)", rule="keyword")] * 100
    assert [len(line) for line in lines_of(found)] == [16] * 6 + [4]
    draw_thoughts(tmp_path / "p.png", found[:40])
    width, height = png_size(tmp_path / "p.png")
    assert 2000 < width < 2300 and 800 < height < 1000
    assert [len(line) for line in lines_of([thought(c) for c in "山月，日。夜"])] == [3, 2, 1]


def test_the_picture_has_a_largest_size_and_says_what_it_left_out(
    tmp_path: Path, texts: list[Text], capsys: pytest.CaptureFixture[str]
) -> None:
    draw_thoughts(tmp_path / "p.png", [thought("山")] * 500)
    assert not any(text.get_parse_math() for text in texts)
    assert max(png_size(tmp_path / "p.png")) < 9000
    assert capsys.readouterr().err == (
        "p.png has no room for the last 20 places; --explain without a file name prints them all\n"
    )
    assert contents(texts).count("山") == 480


def test_the_legend_fits_into_the_narrowest_picture(tmp_path: Path, texts: list[Text]) -> None:
    draw_thoughts(tmp_path / "p.png", [thought("山")])
    legend = next(text for text in texts if text.get_text().startswith("bar:"))
    assert legend.get_window_extent().x1 < legend.figure.get_window_extent().x1  # type: ignore[union-attr]


def test_names_and_probabilities_do_not_touch(tmp_path: Path, texts: list[Text]) -> None:
    names = ("(unknown)", "(end)", "W", "山", "(begin)")
    draw_thoughts(tmp_path / "p.png", [thought(name, *names) for name in names])
    shares = [number for number, text in enumerate(contents(texts)) if text.endswith("%") and text[0] != "-"]
    assert len(shares) == 25
    for number in shares:
        name, share = (texts[at].get_window_extent() for at in (number - 1, number))
        assert name.x1 < share.x0 and share.x1 < name.x0 + 110  # pixels of a place


def test_what_no_font_has_among_the_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[Text], capsys: pytest.CaptureFixture[str]
) -> None:
    fonts(monkeypatch)
    draw_thoughts(tmp_path / "p.png", [thought("山", "\U0001fab7")])
    assert "〓" in contents(texts) and capsys.readouterr().err == "p.png: no font has \U0001fab7; drawn as 〓\n"
