"""Pictures of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

BLUE, ORANGE, GREY, RED = "#20639b", "#ed8a19", "#8a8a8a", "#c0392b"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
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
        right.plot(epochs, [line["validation_perplexity"] for line in lines], color=BLUE, marker=".")
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
    else:
        ours = [line["report_cross_entropy"] for line in lines]
        right.plot(epochs, ours, color=BLUE, marker=".", label="this run")
        right.plot(list(reported), list(reported.values()), "x", color=RED, label="the report (read off its figure)")
        right.set(xlabel="epoch", ylabel="test cross-entropy, pads included")
        right.legend(frameon=False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)


def chinese_font(text: str) -> str | None:
    """The path of an installed font that has all characters of `text`, or None."""
    wanted = {ord(character) for character in text if not character.isspace()}
    for path in sorted(font_manager.findSystemFonts()):
        try:
            if wanted <= set(font_manager.get_font(path).get_charmap()):
                return path
        except (RuntimeError, OSError):  # not a font that matplotlib can read
            continue
    return None
