"""How fast does minidl train on a GPU, and where does the time go? Needs a GPU.

    python benchmarks/gpu.py                                the report's model in batches of 64 to 1024
    python benchmarks/gpu.py --batches 256,4096 --json

Characters a second are measured over steps without a wait between them. `host` is the time the host needs to issue a
step: a step that takes no longer than that is bound by its number of device calls. The parts are timed by CUDA events,
in separate steps; a part lasts until the device has finished it, waiting for the host included. Device calls are
counted by device_calls.py, on its emulator. There is no comparison with a CPU: train_step.py measures that.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import device_calls
import harness
import results
import sizes
from device_calls import CLIP, PARTS, STEP
from processes import BenchmarkError, Ready, Side, serve
from results import Question, layout, short

import minidl
from minidl.backend import device

BATCHES = [64, 128, 256, 512, 1024]
SECONDS = 1.0  # a turn's approximate length
TIMED = 20  # steps in a turn that are timed by part


def main() -> None:
    parser = harness.parser(__doc__, rounds=5)
    sizes.add_options(parser)
    parser.add_argument("--batches", type=harness.numbers, metavar="N,N,N", help=f"batch sizes (default: {BATCHES})")
    args = parser.parse_args()
    batches = args.batches or ([args.batch] if args.batch else BATCHES)
    sides = {f"batch {batch}": Side(functools.partial(build, batch=batch)) for batch in batches}
    if args.side:
        serve(sides[args.side], args)
    if args.sides or args.threads:
        parser.error("--sides and --threads are not for this program; choose sides with --batches")
    gpu = facts()
    figures, ran = harness.take_turns(sides, args.rounds, fresh=False)
    best = max(figures, key=lambda side: statistics.median(turn["rate"] for turn in figures[side]))
    question = Question("rate", "characters a second", more_is_better=True, peers=(), ours=best)
    result = results.summary(question, figures)
    result.update(program="gpu", arguments=sys.argv[1:], rounds=args.rounds, ratio_is="nothing is compared", gpu=gpu)
    result.update(ran, calls=calls(args, batches, ran["left_out"]))
    print(table(result), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result))


def facts() -> dict[str, Any]:
    """The GPU, its driver and the CUDA that CuPy was built for. BenchmarkError if there is no GPU."""
    try:
        cupy: Any = minidl.backend.get("cupy")
    except minidl.BackendError as error:
        raise BenchmarkError(str(error)) from error
    name = device.name(cupy)
    if name == device.EMULATOR:
        raise BenchmarkError(f"{name}: its timings say nothing about a GPU; device_calls.py counts with it")
    runtime, gpu = cupy.cuda.runtime, cupy.cuda.Device()
    return {
        "name": name,
        "compute_capability": f"{int(gpu.compute_capability) / 10:.1f}",
        "driver": device.dotted(runtime.driverGetVersion()),
        "runtime": device.dotted(runtime.runtimeGetVersion()),
        "memory": gpu.mem_info[1],
    }


def calls(args: argparse.Namespace, batches: list[int], left_out: dict[str, str]) -> dict[str, dict[str, int] | None]:
    """A training step's device calls, by batch; None if there is no emulator to count with."""
    counted: dict[str, dict[str, int] | None] = {}
    for batch in batches:
        try:
            parts = device_calls.count(sizes.chosen(args)._replace(batch=batch))["parts"]
        except BenchmarkError as error:
            left_out["device calls"] = str(error)
            return {f"batch {number}": None for number in batches}
        counted[f"batch {batch}"] = device_calls.with_sum(parts)[STEP]
    return counted


class EventClock:
    """Seconds by part from CUDA events, which the device timestamps when it reaches them."""

    def __init__(self, event: Callable[[], Any], milliseconds: Callable[[Any, Any], float]) -> None:
        self.event, self.milliseconds = event, milliseconds
        self.steps: list[list[tuple[str, Any]]] = []
        self.running = False

    def begin(self) -> None:
        """Begin a step."""
        self.running = True
        self.steps.append([])
        self.mark("")

    def mark(self, part: str) -> None:
        """`part` has just been issued."""
        if self.running:
            stamp = self.event()
            stamp.record()
            self.steps[-1].append((part, stamp))

    def medians(self) -> dict[str, float]:
        """Medians over the steps since the last call; waits for the device."""
        self.running = False
        steps, self.steps = self.steps, []
        steps[-1][-1][1].synchronize()
        seconds: dict[str, list[float]] = {part: [0.0] * len(steps) for part in PARTS}
        for number, stamps in enumerate(steps):
            for (_, before), (part, after) in itertools.pairwise(stamps):
                seconds[part][number] += self.milliseconds(before, after) / 1000
        return {part: statistics.median(values) for part, values in seconds.items()}


def build(args: argparse.Namespace, batch: int) -> Ready:
    """The training step in batches of `batch`, warmed up."""
    import side_minidl

    cupy: Any = minidl.backend.get("cupy")
    clock = EventClock(cupy.cuda.Event, cupy.cuda.get_elapsed_time)
    size = sizes.chosen(args)._replace(batch=batch)
    step = side_minidl.training_step(size, clock.mark, backend="cupy", clip=CLIP)
    wait = cupy.cuda.Device().synchronize

    def run(count: int) -> tuple[float, float]:
        """Seconds until `count` steps were issued, and until they were finished."""
        wait()
        started = time.perf_counter()
        for _ in range(count):
            step()
        issued = time.perf_counter() - started
        wait()
        return issued, time.perf_counter() - started

    run(sizes.BATCHES + 1)
    count = max(3, int(SECONDS * 3 / run(3)[1]))

    def turn() -> dict[str, float]:
        host, seconds = (total / count for total in run(count))
        for _ in range(TIMED):
            clock.begin()
            step()
        return {"rate": batch * size.steps / seconds, STEP: seconds, "host": host, **clock.medians()}

    return Ready(turn)


def table(result: Mapping[str, Any]) -> str:
    """The machine; then a row for each figure and a column for each batch."""
    gpu, figures = result["gpu"], result["figures"]
    head = (
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory'] / 2**30:.0f} GiB; "
        f"driver for CUDA {gpu['driver']}, CuPy's CUDA {gpu['runtime']}"
    )

    def counted(name: str) -> list[str]:
        return ["-" if result["calls"][side] is None else f"{result['calls'][side][name]:,}" for side in figures]

    rows = [
        ("", *figures),
        ("characters a second", *(short(turn["rate"]) for turn in figures.values())),
        ("device calls a step", *counted("device_calls")),
        ("of these, launches", *counted("launches")),
    ]
    for name in (STEP, "host", *PARTS):
        rows.append((f"{name} (ms)", *(f"{turn[name] * 1000:.3f}" for turn in figures.values())))
    lines = [f"{name} is left out: {reason}" for name, reason in result["left_out"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([head, *layout(rows), *lines, f"{result['rounds']} rounds; {versions}"])


if __name__ == "__main__":
    harness.main(main)
