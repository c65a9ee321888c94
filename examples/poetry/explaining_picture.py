"""What the model thought while a poem was written, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cli import UsageError
from explaining import Thought
from figures import BLUE, GREY, RED, chinese_font
from matplotlib import font_manager
from matplotlib.figure import Figure
from whole_files import save_figure

STOPS = "，。"  # a line of the picture ends with these
CELL, ROW = 0.62, 0.3  # inches
SHOWN = 4  # runners-up
LEAST = 0.001  # of probability


def draw_thoughts(path: Path, found: Sequence[Thought]) -> None:
    """Line by line: every character over its probability as a bar, the likeliest others under it, those that the rules
    forbade in red, and the rule with the share that it forbade."""
    lines: list[list[Thought]] = [[]]
    for thought in found:
        lines[-1].append(thought)
        if thought.character in STOPS:
            lines.append([])
    lines = [line for line in lines if line]
    text = "".join(t.character + "".join(r.character for r in t.runners[:SHOWN]) + t.rule for t in found)
    font = chinese_font(text)
    if font is None:
        raise UsageError(
            f"--explain {path}: no installed font has all characters; install one, such as Noto Serif CJK, or give no "
            "name for a table"
        )
    height_of_line = (SHOWN + 4.2) * ROW
    width = max(map(len, lines)) * CELL * 1.9 + 0.5
    height = len(lines) * height_of_line + 0.5
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    # Numbers and English have matplotlib's own font: Chinese fonts may draw them badly at this size.
    big, small = (font_manager.FontProperties(fname=font, size=size) for size in (20, 11))
    tiny = font_manager.FontProperties(size=7)
    legend = "bar: the model's probability    grey: the likeliest others    red: forbidden by the rule named below"
    axes.text(0.25, 0.28, legend, fontproperties=tiny, color=GREY, va="center")
    for row, line in enumerate(lines):
        top = 0.5 + row * height_of_line
        for column, thought in enumerate(line):
            x = 0.3 + column * CELL * 1.9
            face = big if len(thought.character) == 1 else small
            axes.text(x, top + 0.3, thought.character, fontproperties=face, va="center")
            axes.text(
                x + (0.45 if len(thought.character) == 1 else 0.75),
                top + 0.3,
                _percent(thought.probability),
                fontproperties=tiny,
                va="center",
                color=BLUE,
            )
            axes.barh(top + 0.62, CELL * 1.6, 0.07, x, color="#e8e8e8")
            axes.barh(top + 0.62, CELL * 1.6 * thought.probability, 0.07, x, color=BLUE)
            for place, other in enumerate(r for r in thought.runners[:SHOWN] if r.probability >= LEAST):
                y = top + 0.9 + place * ROW
                color = GREY if other.allowed else RED
                axes.text(x, y, other.character, fontproperties=small, va="center", color=color)
                shift = 0.3 if len(other.character) == 1 else 0.6
                axes.text(x + shift, y, _percent(other.probability), fontproperties=tiny, va="center", color=color)
            y = top + 0.9 + SHOWN * ROW
            rule = thought.rule.replace("end of the ", "end of ")
            if rule:
                face, share = tiny if rule.isascii() else small, f"-{thought.forbidden:.0%}"
                axes.text(x, y, rule, fontproperties=face, va="center", color=RED)
                axes.text(x, y + 0.7 * ROW, share, fontproperties=tiny, va="center", color=RED)
    save_figure(figure, path, 110)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"
