"""A figure: how well poems keep the rules and how probable they are, for written poems, free samples and Tang poems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_files import save_figure
from common.figures import BLUE, GREY, ORANGE
from common.lettering import Lettering

import numpy as np
from matplotlib.figure import Figure

SETS = {"written": (BLUE, "written by the rules"), "free": (ORANGE, "free samples"), "Tang": (GREY, "Tang poems")}
PANELS = {
    "rhyme": "poems whose rhyme is kept",
    "tones": "poems whose tones are kept",
    "kept": "poems that keep all",
    "copied": "lines that stand elsewhere",
    "bigrams": "distinct pairs of characters",
    "log_probability": "log-probability, nats per character",
}


def draw_verse(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each share, and one for the log-probability per character."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    lettering = Lettering("".join(forms))
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for number, (what, (color, label)) in enumerate(SETS.items()):
            values = [_value(rows, form, what, name) for form in forms]
            places = np.arange(len(forms)) + (number - 1) * 0.27
            axes.bar(places, values, 0.25, color=color, label=label)
        axes.set_xticks(range(len(forms)), forms, font=lettering.font(11))
        axes.grid(visible=False, axis="x")
        axes.set_title(title, fontsize=11)
        if name != "log_probability":
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        if name in ("rhyme", "tones", "kept"):
            axes.set_ylim(0, 1.02)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path, 120)


def _value(rows: Sequence[Mapping[str, Any]], form: str, what: str, name: str) -> float:
    """The value of the first set with that name, or NaN, which is drawn as a gap."""
    for row in rows:
        if row["form"] == form and row["what"].split(" ")[0].rstrip(",") == what:
            return float("nan") if row[name] is None else row[name]
    return float("nan")
