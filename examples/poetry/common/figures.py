"""Pictures of training runs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from common.atomic_files import save_figure
from common.cli import note
from common.lettering import Lettering, clusters

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREY, RED = "#20639b", "#ed8a19", "#8a8a8a", "#c0392b"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
DPI = 120
PAPER = "#fbf7ee"
COLUMN, BAND, BANDS = 16, 30, 12  # characters in a column, columns in a band, bands on a page
COLUMNS = re.compile(rf"[^。]{{1,{COLUMN}}}。{{0,3}}|。{{1,{COLUMN}}}")
LINE, LINES = 72, 240  # characters in a line, lines on a page
matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]


def draw_curves(path: Path, lines: Sequence[Mapping[str, Any]], reported: Mapping[int, float] | None = None) -> None:
    """Losses and perplexity by epoch; with `reported`, the report's figures beside ours, pads included."""
    epochs = [line["epoch"] for line in lines]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    best = min(lines, key=lambda line: line["validation_loss"])
    left.plot(epochs, [line["train_loss"] for line in lines], color=GREY, label="training")
    left.plot(epochs, [line["validation_loss"] for line in lines], color=BLUE, marker=".", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats/char)")
    if reported is None:
        right.plot(epochs, [min(line["validation_perplexity"], 1e9) for line in lines], color=BLUE, marker=".")
        right.annotate(
            f"{best['validation_perplexity']:.1f}",
            (best["epoch"], best["validation_perplexity"]),
            xytext=(0, 14),
            textcoords="offset points",
            ha="center",
            color=BLUE,
            weight="bold",
        )
        right.set(xlabel="epoch", ylabel="validation perplexity", yscale="log")
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("{x:g}")
    else:
        ours = [line["report_cross_entropy"] for line in lines]
        right.plot(epochs, ours, color=BLUE, marker=".", label="this run")
        right.plot(list(reported), list(reported.values()), "x", color=RED, label="the report (read off its figure)")
        right.set(xlabel="epoch", ylabel="test cross-entropy, pads included")
        right.legend(frameon=False)
    left.legend(frameon=False)
    for axes in (left, right):
        _count_epochs(axes)
    save_figure(figure, path, DPI)


def _count_epochs(axes: Axes) -> None:
    """Ticks only at whole epochs, even if there is just one."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_optimizers(path: Path, curves: Mapping[str, tuple[Sequence[Mapping[str, Any]], Mapping[int, float]]]) -> None:
    """(metrics, the report's figures) by optimizer: lines are ours, crosses the report's."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for color, (name, (lines, reported)) in zip((BLUE, ORANGE, RED), curves.items(), strict=True):
        ours = [line["report_cross_entropy"] for line in lines]
        axes.plot([line["epoch"] for line in lines], ours, color=color, label=name)
        axes.plot(list(reported), list(reported.values()), "x", color=color)
    axes.plot([], [], "x", color=GREY, label="the report")
    axes.set(xlabel="epoch", ylabel="test cross-entropy, pads included (nats)")
    _count_epochs(axes)
    axes.legend(frameon=False)
    save_figure(figure, path, DPI)


def draw_starts(path: Path, starts: Sequence[Any], frequencies: float) -> None:
    """Losses by epoch from each start; the loss of plain character `frequencies` is a dashed line."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(frequencies, color=GREY, linestyle="--", label="plain character frequencies")
    for color, marker, start in zip((BLUE, RED, ORANGE), "oxs", starts, strict=True):
        label = f"{start.title}: {start.distinct_units} different hidden units"
        axes.plot(range(1, len(start.losses) + 1), start.losses, color=color, marker=marker, label=label)
    axes.set(xlabel="epoch", ylabel="test cross-entropy (nats per real target)")
    _count_epochs(axes)
    axes.legend(frameon=False)
    save_figure(figure, path, DPI)


def draw_poems(path: Path, poems: Sequence[str]) -> None:
    """The poems as on a page: Chinese in vertical columns from right to left, other scripts in lines.

    Prints a note about characters that no font has, and about text that exceeds the largest page.
    """
    poems = [normalize("NFC", poem) for poem in poems]  # macOS decomposes accents and voicing marks
    lettering = Lettering("".join(poems))
    lettering.report_lost(path.name)
    figure, left_out = (_page_of_columns if lettering.chinese else _page_of_lines)(poems, lettering)
    if left_out:
        note(f"{path.name} has no room for {left_out:,} more characters")
    save_figure(figure, path, DPI)


def _page_of_columns(poems: Sequence[str], lettering: Lettering) -> tuple[Figure, int]:
    """The page as bands of columns, one below the other; and how many characters were left out."""
    columns = [column for poem in poems for column in (*COLUMNS.findall(poem), "")][:-1]
    drawn = columns[: BANDS * BAND]
    bands = [drawn[at : at + BAND] for at in range(0, len(drawn), BAND)] or [[]]
    heights = [0.275 * max(map(len, band), default=1) + 0.7 for band in bands]  # inches
    width, height = 0.4 * len(bands[0]) + 0.8, sum(heights)
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    for number, band in enumerate(bands):
        y = 1 - (sum(heights[:number]) + 0.35) / height
        for place, column in enumerate(band):
            x = 1 - (0.6 + 0.4 * place) / width
            text = "\n".join(clusters(lettering.shown(column)))
            figure.text(x, y, text, ha="center", va="top", font=lettering.font(17), linespacing=1.15, parse_math=False)
    return figure, sum(map(len, columns[len(drawn) :]))


def _page_of_lines(poems: Sequence[str], lettering: Lettering) -> tuple[Figure, int]:
    """The page as lines from left to right; and how many characters were left out."""
    lines = [line for poem in poems for line in (*textwrap.wrap(lettering.shown(poem), LINE), "")][:-1]
    drawn = lines[:LINES]
    height = 0.26 * len(drawn) + 0.7  # inches
    figure = Figure(dpi=DPI, facecolor=PAPER)
    texts = [
        figure.text(
            0.4,
            height - 0.35 - 0.26 * number,
            line,
            va="top",
            font=lettering.font(12),
            parse_math=False,
            transform=figure.dpi_scale_trans,  # in inches
        )
        for number, line in enumerate(drawn)
    ]
    widest = max((text.get_window_extent().width for text in texts), default=0)
    figure.set_size_inches(widest / figure.dpi + 0.8, height)
    return figure, sum(map(len, lines[len(drawn) :]))
