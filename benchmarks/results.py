"""From raw figures to results: medians and ratios, the table, the JSON, and facts about the machine."""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minidl.kernels.cpu.threads import usable_cores

Figures = dict[str, list[dict[str, float]]]  # by side, one entry a round
FLOOR = "floor"  # the side that does only what every side must do


class Ratio(NamedTuple):
    """An additional JSON field: one side's figure divided by another's; by default the question's figure."""

    top: str
    bottom: str
    figure: str = ""


@dataclass
class Question:
    """What is compared: `figure` names the figure of a turn that the table shows and the ratios divide."""

    figure: str
    unit: str
    more_is_better: bool
    peers: Sequence[str]  # `ratio` is against the best of these
    ours: str = "minidl"
    ours_on_top: bool = False  # ratio = ours / peer; else peer / ours
    ratios: Mapping[str, Ratio] = field(default_factory=dict)


def summary(question: Question, figures: Figures) -> dict[str, Any]:
    """The JSON's figures; null where a side is missing.

    A ratio is taken within each round, and its median is reported: a machine that gets slower or faster over time
    affects both sides.
    """
    values = {side: [figure[question.figure] for figure in rounds] for side, rounds in figures.items()}
    medians = {side: statistics.median(rounds) for side, rounds in values.items()}

    def divide(ratio: Ratio) -> float | None:
        if ratio.top not in figures or ratio.bottom not in figures:
            return None
        name = ratio.figure or question.figure
        pairs = zip(figures[ratio.top], figures[ratio.bottom], strict=True)
        return statistics.median(top[name] / bottom[name] for top, bottom in pairs)

    present = [peer for peer in question.peers if peer in medians]
    best = "the best peer"
    if present:
        best = (max if question.more_is_better else min)(present, key=lambda peer: medians[peer])
    main = Ratio(question.ours, best) if question.ours_on_top else Ratio(best, question.ours)
    better = "better" if question.ours_on_top == question.more_is_better else "worse"
    return {
        "ratio": divide(main),
        "ratio_is": f"{question.unit}: {main.top} / {main.bottom} (above 1: {question.ours} is {better})",
        **{name: divide(ratio) for name, ratio in question.ratios.items()},
        "ours": medians.get(question.ours),
        "peers": {side: median for side, median in medians.items() if side not in (question.ours, FLOOR)},
        "floor": medians.get(FLOOR),
        "unit": question.unit,
        "spread": {side: [float(np.percentile(rounds, q)) for q in (25, 75)] for side, rounds in values.items()},
        "over_ours": {side: divide(Ratio(side, question.ours)) for side in values},
        "figures": {
            side: {name: statistics.median(figure[name] for figure in rounds) for name in rounds[0]}
            for side, rounds in figures.items()
        },
        **machine(),
    }


def table(question: Question, result: Mapping[str, Any]) -> str:
    """Side, median, quartiles and the ratio to ours; then the ratios and the versions."""
    rows = [("", question.unit, "quartiles", f"/ {question.ours}")]
    for side, figures in result["figures"].items():
        low, high = result["spread"][side]
        quotient = result["over_ours"][side]
        median = short(figures[question.figure])
        rows.append((side, median, f"{short(low)} to {short(high)}", "-" if quotient is None else f"{quotient:.3f}"))
    return "\n".join([*layout(rows), *footer(question, result)])


def footer(question: Question, result: Mapping[str, Any]) -> list[str]:
    """The ratios, one a line, and a line on where they were measured."""
    lines = [f"ratio {result['ratio']:.3f}: {result['ratio_is']}"] if result["ratio"] else []
    for name, (top, bottom, figure) in question.ratios.items():
        of = f", {figure}" if figure else ""
        lines += [f"{name} {result[name]:.3f}: {top} / {bottom}{of}"] if result[name] else []
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [*lines, f"{result['rounds']} rounds, {result['cores']} cores, {result['cpu']}; {versions}"]


def layout(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that this process has imported, and of the BLAS that NumPy was built for."""
    found = {"Python": platform.python_version()}
    for name, label in (("numpy", "NumPy"), ("torch", "PyTorch"), ("jax", "JAX"), ("cupy", "CuPy")):
        if name in sys.modules:
            found[label] = str(sys.modules[name].__version__)
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    found["BLAS"] = f"{blas['name']} {blas['version']}"
    return found


def machine() -> dict[str, Any]:
    return {"cores": usable_cores(), "cpu": cpu_name()}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
