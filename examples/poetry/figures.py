"""Pictures of training runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from whole_files import save_figure

BLUE, ORANGE, GREY, RED = "#20639b", "#ed8a19", "#8a8a8a", "#c0392b"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
MISSING_FONT = "The poems are in the text beside this picture:\nno installed font has the characters to draw them."
matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]


def draw_curves(path: Path, lines: Sequence[Mapping[str, Any]], reported: Mapping[int, float] | None = None) -> None:
    """Losses and perplexity by epoch; with `reported` the report's figures beside ours, pads included."""
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
    save_figure(figure, path, 120)


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
    axes.legend(frameon=False)
    save_figure(figure, path, 120)


def draw_starts(path: Path, starts: Sequence[Any], frequencies: float) -> None:
    """Losses by epoch from each start, above the loss of plain character `frequencies`."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(frequencies, color=GREY, linestyle="--", label="plain character frequencies")
    for color, marker, start in zip((BLUE, RED, ORANGE), "oxs", starts, strict=True):
        label = f"{start.title}: {start.distinct_units} different hidden units"
        axes.plot(range(1, len(start.losses) + 1), start.losses, color=color, marker=marker, label=label)
    axes.set(xlabel="epoch", ylabel="test cross-entropy (nats per real target)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    save_figure(figure, path, 120)


def draw_poems(path: Path, poems: Sequence[str]) -> None:
    """The poems as on a page: in columns from the top down, from right to left."""
    columns = [column for poem in poems for column in (*re.findall(r"[^。]{1,16}。*|。+", poem), "")][:-1]
    width, height = 0.4 * len(columns) + 0.8, 0.275 * max(map(len, columns), default=1) + 0.7  # inches
    figure = Figure(figsize=(width, height), facecolor="#fbf7ee")
    font = chinese_font("".join(poems))
    if font is None:
        figure.text(0.5, 0.5, MISSING_FONT, ha="center", va="center", wrap=True)
    else:
        properties = font_manager.FontProperties(fname=font, size=17)
        for place, column in enumerate(columns):
            x, y = 1 - (0.6 + 0.4 * place) / width, 1 - 0.35 / height
            figure.text(x, y, "\n".join(column), ha="center", va="top", fontproperties=properties, linespacing=1.15)
    save_figure(figure, path, 120)


def chinese_font(text: str) -> str | None:
    """The path of an installed font that has all characters of `text`, one with serifs first; or None."""
    wanted = {ord(character) for character in text if not character.isspace()}
    for path in sorted(font_manager.findSystemFonts(), key=lambda path: ("serif" not in path.lower(), path)):
        try:
            if wanted <= font_manager.get_font(path).get_charmap().keys():
                return path
        except (RuntimeError, OSError):  # not a font that matplotlib can read
            continue
    return None
