"""How does training speed change with the batch, the hidden size, the vocabulary and the threads?

    python benchmarks/sweep.py batch --json > batch.json

Runs train_step.py for one value after another; the other sizes are the report's. The figures are characters a second:
batch x steps, divided by the seconds of a step. plots.py plots the JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import results
import sizes

from minidl.kernels.cpu.threads import usable_cores

VALUES = {
    "batch": [16, 32, 64, 128, 256, 512],
    "hidden": [64, 128, 256, 512],
    "vocabulary": [500, 1000, 2000, 4000, 8000, 16_000],
    "threads": list(range(1, usable_cores() + 1)),
}
KEPT = ("versions", "cores", "cpu", "rounds", "left_out")


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_argument("over", choices=list(VALUES), help="what to sweep")
    parser.add_argument("--values", type=harness.numbers, metavar="N,N,N", help="the values to measure")
    parser.add_argument("--rounds", type=harness.whole, default=5, help="turns per side and value (default: 5)")
    parser.add_argument("--sides", default="minidl,torch", help="sides of train_step.py (default: minidl,torch)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, the table on stderr")
    args = parser.parse_args()
    points = [point(args, value) for value in args.values or VALUES[args.over]]
    sides = list(points[0]["figures"])
    rows = [(args.over, *sides, "ratio")]
    for one in points:
        ratio = "-" if one["ratio"] is None else f"{one['ratio']:.3f}"
        rows.append((str(one["value"]), *(f"{one['figures'][side]:,.0f}" for side in sides), ratio))
    print("\n".join(["characters a second", *results.layout(rows)]), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary(args, points)))


def point(args: argparse.Namespace, value: int) -> dict[str, Any]:
    """Characters a second of every side at this value, with the ratio and the facts of that run."""
    options = [f"--{args.over}", str(value), "--rounds", str(args.rounds), "--sides", args.sides, "--json"]
    program = Path(__file__).with_name("train_step.py")
    done = subprocess.run([sys.executable, str(program), *options], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise harness.BenchmarkError(f"train_step.py failed at {args.over} {value}; its error is above")
    result = json.loads(done.stdout)
    size = sizes.MODELS["report"]
    batch = value if args.over == "batch" else size.batch
    rates = {side: batch * size.steps / figures["seconds"] for side, figures in result["figures"].items()}
    return {"value": value, "figures": rates, "ratio": result["ratio"], **{name: result[name] for name in KEPT}}


def summary(args: argparse.Namespace, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON result; each figure is a list as long as `values`."""
    columns = {side: [point["figures"][side] for point in points] for side in points[0]["figures"]}
    ratios = [point["ratio"] for point in points if point["ratio"] is not None]
    return {
        "program": "sweep",
        "over": args.over,
        "values": [point["value"] for point in points],
        "ratio": min(ratios, default=None),
        "ratio_is": "the smallest of all values' ratios: a peer's seconds a step / minidl's",
        "ratios": [point["ratio"] for point in points],
        "ours": columns.get("minidl"),
        "peers": {side: rates for side, rates in columns.items() if side not in ("minidl", results.FLOOR)},
        "floor": columns.get(results.FLOOR),
        "unit": "characters a second",
        **{name: points[0][name] for name in KEPT},
    }


if __name__ == "__main__":
    harness.main(main)
