"""The model's predictions for a poem (see explaining.py) as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.atomic_files import save_figure
from common.cli import note
from common.figures import BLUE, GREY, RED
from common.lettering import Lettering
from verse.explaining import Thought

from matplotlib.axes import Axes
from matplotlib.figure import Figure

STOPS = "，。"  # a line of the picture ends after these
WIDEST, MOST = 16, 30  # places in a line, and lines
CELL, ROW, LINE = 1.18, 0.3, 2.46  # inches: a place's width, the height of a runner-up's row and of a line
SHOWN = 4  # runners-up
LEAST = 0.001  # probability of a runner-up that is shown


def draw_thoughts(path: Path, found: Sequence[Thought]) -> None:
    """Draw each character over a bar of its probability, then the likeliest alternatives (red if the rules forbid
    them), and the rule with the share that it forbade.

    A note reports characters that no font has, and one reports places beyond the largest picture.
    """
    lettering = Lettering(
        "".join(t.character + "".join(r.character for r in t.runners[:SHOWN]) + t.rule for t in found)
    )
    lettering.report_lost(path.name)
    lines = lines_of(found)
    if len(lines) > MOST:
        rest = sum(map(len, lines[MOST:]))
        note(f"{path.name} has no room for the last {rest:,} places; --explain without a file name prints them all")
        lines = lines[:MOST]
    width, height = max(6, max(map(len, lines)) * CELL + 0.5), len(lines) * LINE + 0.5  # the legend needs the 6
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    legend = "bar: the model's probability    grey: the likeliest others    red: forbidden by the rule named below"
    sheet = Sheet(axes, lettering)
    sheet.write(0.25, 0.28, legend, 7, GREY)
    for row, line in enumerate(lines):
        for column, thought in enumerate(line):
            sheet.draw(0.3 + column * CELL, 0.5 + row * LINE, thought)
    save_figure(figure, path, 110)


def lines_of(found: Sequence[Thought]) -> list[list[Thought]]:
    """The places of each line; a line ends after a mark or at the maximum width."""
    lines: list[list[Thought]] = [[]]
    for thought in found:
        if len(lines[-1]) == WIDEST or (lines[-1] and lines[-1][-1].character in STOPS):
            lines.append([])
        lines[-1].append(thought)
    return lines


class Sheet(NamedTuple):
    """The drawing area, in inches with y downwards, and its fonts."""

    axes: Axes
    lettering: Lettering

    def draw(self, x: float, top: float, thought: Thought) -> None:
        """Draw one place with its upper left corner at (x, top)."""
        self.pair(x, top + 0.3, thought.character, thought.probability, 20, "black", BLUE)
        self.axes.barh(top + 0.62, 0.84 * CELL, 0.07, x, color="#e8e8e8")
        self.axes.barh(top + 0.62, 0.84 * CELL * thought.probability, 0.07, x, color=BLUE)
        likely = [runner for runner in thought.runners[:SHOWN] if runner.probability >= LEAST]
        for number, runner in enumerate(likely):
            color = GREY if runner.allowed else RED
            self.pair(x, top + 0.9 + number * ROW, runner.character, runner.probability, 11, color, color)
        if thought.rule:
            y = top + 0.9 + SHOWN * ROW
            rule = thought.rule.replace("end of the ", "end of ")
            self.write(x, y, rule, 7 if rule.isascii() else 11, RED)
            self.write(x, y + 0.7 * ROW, f"-{thought.forbidden:.0%}", 7, RED)

    def pair(self, x: float, y: float, name: str, probability: float, size: float, color: str, beside: str) -> None:
        """Write a character, or the name of a mark, with its probability beside it."""
        single = len(name) == 1
        self.write(x, y, name, size if single else 8, color)
        self.write(x + (0.023 * size if single else 0.7), y, _percent(probability), 7, beside)

    def write(self, x: float, y: float, text: str, size: float, color: str) -> None:
        font = self.lettering.font(size)
        self.axes.text(x, y, self.lettering.shown(text), font=font, va="center", color=color, parse_math=False)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"
