"""distributed.py's figure: measurements as dots, projections as lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import plots
import projection
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from projection import LINKS, RANKS, Machine

COLORS = dict(zip((link.name for link in LINKS), (plots.COLORS["torch"], plots.COLORS["minidl"]), strict=True))


def draw(machine: Machine, figures: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    strong, weak = figure.subplots(1, 2)
    share = max(machine.seconds)
    for axes in (strong, weak):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 16, 256, 4096], ["1", "16", "256", "4,096"])
        axes.set_xlabel("ranks")
    draw_strong(strong, machine, 16 * share)
    draw_weak(weak, machine, share)
    one = figures["1 rank"]
    for name, of in figures.items():
        if of["ranks"] > 1:
            axes, value = (strong, one["seconds"] / of["seconds"])
            if name.endswith("weak"):
                axes, value = weak, value  # the same time for ranks times the work is 100 %
            axes.plot([of["ranks"]], [value], "o", color="black", zorder=5, label="measured, one core a rank")
    strong.legend(frameon=False, fontsize=8)
    weak.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=120)


def draw_strong(axes: Axes, machine: Machine, batch: int) -> None:
    for link in LINKS:
        times = [projection.speedup(machine, ranks, batch, link) for ranks in RANKS]
        rings = [projection.speedup(machine, ranks, batch, link, only_ring=True) for ranks in RANKS]
        axes.plot(RANKS, times, color=COLORS[link.name], label=f"projected, {link.name}")
        axes.plot(RANKS, rings, ":", color=COLORS[link.name], label=f"ring alone, {link.name}")
    axes.plot(RANKS, RANKS, color="#bbbbbb", linewidth=1, label="perfect")
    axes.set_yscale("log", base=2)
    ticks = [1, 4, 16, 64, 256, 1024]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set(title=f"strong: a batch of {batch:,} shared", ylabel="times as fast as one rank", ylim=(0.5, 2048))


def draw_weak(axes: Axes, machine: Machine, share: int) -> None:
    for link in LINKS:
        for batch, style in ((share, "-"), (share // 16, "--")):
            values = [projection.efficiency(machine, ranks, batch, link) for ranks in RANKS]
            axes.plot(RANKS, values, style, color=COLORS[link.name], label=f"{batch} a rank, {link.name}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set(title="weak: the batch grows with the ranks", ylabel="of one rank's sequences a second", ylim=(0, 1.05))
