"""How many device calls does a training step make? Kernels, products, copies and waits, counted without a GPU.

    python benchmarks/device_calls.py                     the report's model, or --model char, --model word
    python benchmarks/device_calls.py --steps 10 --json

The real CuPy runs on tests/emulator, which here counts every call and computes nothing. What the host issues does not
depend on the device, so the counts are a GPU's. After a warm-up, a training step of --steps time steps is counted, and
one of twice as many: their difference gives the calls per time step, and what remains of the first is the rest. The
host's seconds are the time that Python and CuPy take to issue the calls; a GPU's driver would add its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import harness
import results
import sizes
from processes import BenchmarkError
from sizes import BATCHES, Size

EMULATOR = Path(__file__).resolve().parent.parent / "tests" / "emulator"
CLIP = 1.0  # as in examples/poetry/train.py
PARTS = (
    *("embedding forward", "LSTM forward", "head and loss", "LSTM backward", "embedding backward"),
    *("clipping", "optimizer"),
)
# Calls that compute, then those that move data or wait, by the emulator's names. `device_calls` sums the first four.
CALLS = ("launches", "products", "copies_on_device", "fills")
OTHERS = ("copies_to_device", "copies_to_host", "syncs", "allocations")
COUNTS = ("device_calls", *CALLS, *OTHERS)
TITLES = {"copies_on_device": "copies", "copies_to_device": "uploads", "copies_to_host": "downloads"}
STEP = "step"

Counts = dict[str, dict[str, int]]  # by part, then by name


def main() -> None:
    parser = harness.Parser(__doc__)
    sizes.add_options(parser)
    harness.add_json(parser)
    parser.add_argument("--counting", metavar="SIZE", help=argparse.SUPPRESS)  # the process on the emulator
    args = parser.parse_args()
    if args.counting:
        print(json.dumps(serve(Size(**json.loads(args.counting)))))
        return
    result = summary(sizes.chosen(args))
    print(table(result), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result))


def emulator() -> Any:
    """The module `emulator` of tests/emulator: `python`, `environment` and `trace`."""
    if str(EMULATOR) not in sys.path:
        sys.path.append(str(EMULATOR))
    try:
        import emulator
    except ModuleNotFoundError as error:
        raise BenchmarkError(f"counting needs the emulator, which is in the repository's tests: {error}") from error
    return emulator


def count(size: Size) -> dict[str, Any]:
    """A training step's calls by part, and the versions; counted by a Python that runs on the emulator."""
    module = emulator()
    try:
        command, environment = module.python(), module.environment("idle")
    except module.Unavailable as error:
        raise BenchmarkError(f"the emulator cannot be built: {error}") from error
    program = [command, __file__, "--counting", json.dumps(size._asdict())]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"]
        raise BenchmarkError(f"nothing was counted: {lines[-1].removeprefix('device_calls.py: error: ')}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def serve(size: Size) -> dict[str, Any]:
    """Run as that process."""
    import side_minidl

    counter = Counter(emulator().trace)
    step = side_minidl.training_step(size, counter.mark, backend="cupy", clip=CLIP)
    for _ in range(BATCHES + 1):
        step()
    parts = counter.of(step)
    return {"parts": parts, "host_seconds": harness.median_seconds(step), "versions": results.versions()}


class Counter:
    """Calls by part: each mark ends a trace and begins the next."""

    def __init__(self, trace: Callable[[], AbstractContextManager[Any]]) -> None:
        self.trace = trace
        self.parts: Counts = {}
        self.open: AbstractContextManager[Any] | None = None

    def of(self, step: Callable[[], Any]) -> Counts:
        """The calls of one step."""
        self.parts = {part: dict.fromkeys(COUNTS, 0) for part in PARTS}
        self._begin()
        step()
        assert self.open is not None
        self.open.__exit__(None, None, None)
        self.open = None
        return self.parts

    def mark(self, part: str) -> None:
        """`part` has just ended."""
        if self.open is None:  # warming up
            return
        self.open.__exit__(None, None, None)
        for name in (*CALLS, *OTHERS):
            self.parts[part][name] += getattr(self.calls, name)
        self.parts[part]["device_calls"] = sum(self.parts[part][name] for name in CALLS)
        self._begin()

    def _begin(self) -> None:
        self.open = self.trace()
        self.calls = self.open.__enter__()


def summary(size: Size) -> dict[str, Any]:
    """The JSON result: counts by part and for the complete step."""
    short, long = (count(size._replace(steps=steps)) for steps in (size.steps, 2 * size.steps))
    whole, doubled = with_sum(short["parts"]), with_sum(long["parts"])
    slope = {part: each(lambda a, b: (b - a) / size.steps, whole[part], doubled[part]) for part in whole}
    rest = {part: each(lambda a, b: 2 * a - b, whole[part], doubled[part]) for part in whole}
    ours = whole[STEP]["device_calls"]
    return {
        "program": "device_calls",
        "arguments": sys.argv[1:],
        "ratio": None,
        "ratio_is": "nothing is compared",
        "ours": ours,
        "peers": {},
        "floor": None,
        "unit": "device calls a training step",
        "spread": {"minidl": [ours, ours]},
        "figures": {"minidl": whole[STEP]},
        "host_seconds": short["host_seconds"],
        "steps": size.steps,
        "per_time_step": slope[STEP],
        "rest": rest[STEP],
        "parts": {part: {"step": whole[part], "per_time_step": slope[part], "rest": rest[part]} for part in PARTS},
        "versions": short["versions"],
        "rounds": 1,
        "left_out": {},
        **results.machine(),
    }


def with_sum(parts: Counts) -> Counts:
    return {**parts, STEP: {name: sum(part[name] for part in parts.values()) for name in COUNTS}}


def each(action: Callable[[int, int], float], a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, float]:
    return {name: action(a[name], b[name]) for name in COUNTS}


def table(result: Mapping[str, Any]) -> str:
    """A row for each part: its device calls, per time step and the rest; then each kind of call in the step."""
    names = (*CALLS, *OTHERS)
    steps = result["steps"]
    titles = [TITLES.get(name, name) for name in names]
    rows = [(f"{steps} time steps", "device calls", "per time step", "the rest", *titles)]
    whole = {"step": result["figures"]["minidl"], "per_time_step": result["per_time_step"], "rest": result["rest"]}
    for part, counts in {**result["parts"], STEP: whole}.items():
        of_step, slope, rest = (counts[name] for name in ("step", "per_time_step", "rest"))
        summed = [f"{counts['device_calls']:,g}" for counts in (of_step, slope, rest)]
        rows.append((part, *summed, *(f"{of_step[name]:,}" for name in names)))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    host = f"counted on an emulator; to issue all calls, Python and CuPy took {result['host_seconds'] * 1000:.2f} ms"
    return "\n".join([*results.layout(rows), f"{host}; {result['cores']} cores, {result['cpu']}; {versions}"])


if __name__ == "__main__":
    harness.main(main)
