"""Plot the results of sweep.py and scaling.py.

    python benchmarks/plots.py batch.json hidden.json vocabulary.json threads.json scaling.json --out benchmarks

speed.png has a panel for each sweep: characters a second against the swept value. corpus.png shows seconds an epoch
against the size of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = {"minidl": "#20639b", "torch": "#ed8a19", "torch-tuned": "#c0392b", "jax": "#3a7d44", "floor": "#8a8a8a"}
LABELS = {"batch": "sequences a batch", "hidden": "hidden size", "vocabulary": "vocabulary", "threads": "threads"}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="JSON of sweep.py or scaling.py")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="a folder (default: this program's)")
    args = parser.parse_args()
    results = [read(path) for path in args.results]
    sweeps = [result for result in results if result["program"] == "sweep"]
    scalings = [result for result in results if result["program"] == "scaling"]
    if sweeps:
        draw_sweeps(sweeps, args.out / "speed.png")
    for result in scalings:
        draw_scaling(result, args.out / "corpus.png")


def read(path: Path) -> dict[str, Any]:
    """The object that a program printed; BenchmarkError if it cannot be plotted."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise harness.BenchmarkError(f"{path} is not JSON: {error}") from None
    if not isinstance(result, dict) or result.get("program") not in ("sweep", "scaling"):
        raise harness.BenchmarkError(f"{path} is not a result of sweep.py or scaling.py")
    return result


def draw_sweeps(sweeps: Sequence[dict[str, Any]], path: Path) -> None:
    rows = -(-len(sweeps) // 2)
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, min(2, len(sweeps)), squeeze=False).flatten()
    for axes, result in zip(panels, sweeps, strict=False):
        sides = {"minidl": result["ours"], **result["peers"], "floor": result["floor"]}
        for side, rates in sides.items():
            if rates:
                axes.plot(result["values"], rates, marker=".", color=COLORS[side], label=side)
        if result["over"] == "threads":
            axes.set_xticks(result["values"])
        else:
            logarithmic(axes, result["values"])
        top = 1.1 * max(max(rates) for rates in sides.values() if rates)
        axes.set(xlabel=LABELS[result["over"]], ylabel="characters a second", ylim=(0, top))
        axes.yaxis.set_major_formatter("{x:,.0f}")
    for axes in panels[len(sweeps) :]:
        axes.remove()
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with a tick at each of the values, which double."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()


def draw_scaling(result: dict[str, Any], path: Path) -> None:
    figures = result["figures"].values()
    characters = [one["characters"] for one in figures]
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(characters, [one["seconds_an_epoch"] for one in figures], marker=".", color=COLORS["minidl"])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    for side, one in result["figures"].items():
        place = (one["characters"], one["seconds_an_epoch"])
        axes.annotate(side, place, xytext=(-6, 4), textcoords="offset points", ha="right")
    axes.set(xlabel="characters and end marks trained on", ylabel="seconds an epoch", xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    harness.main(main)
