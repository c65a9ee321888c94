"""How much faster is train.py --distributed with more ranks, measured here and projected to many machines?

    python benchmarks/distributed.py                                     # pip install -e '.[distributed]' for mpiexec
    python benchmarks/distributed.py --json --picture docs/scaling.png > distributed.json

The report's model on rectangular batches, as in train_step.py, with train.py's training step. Every turn is a new
mpiexec, and a rank has one thread. `1 rank` and `2 ranks` share a batch of 256 (strong scaling), `2 ranks, weak` have
256 each. `all threads` is one process with all threads. The `share` sides are single processes with all threads and
smaller batches: the work of one rank that has a machine to itself. projection.py projects them to many machines.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
import projection
import sizes
from processes import BenchmarkError, Ready, Side
from results import Question, footer, layout, short

SHARES = (1, 4, 16, 64, 256)
REPEATS = 20  # all-reduces that are timed separately


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    sizes.add_options(parser)
    parser.add_argument("--repeat", type=harness.whole, default=6, help="training steps per turn (default: 6)")
    parser.add_argument("--ranks", type=harness.numbers, default=[1, 2], metavar="N,N", help="rank counts (1,2)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw measured and projected scaling (PNG)")
    args = parser.parse_args()
    batch = sizes.chosen(args).batch
    if args.ranks[0] != 1 or len(args.ranks) < 2:
        raise BenchmarkError(f"--ranks must begin with 1 and name at least one more, got {args.ranks}")
    sides = {named(n): ranks_side(n, batch) for n in args.ranks}
    sides |= {f"{named(n)}, weak": ranks_side(n, n * batch) for n in args.ranks[1:]}
    sides["all threads"] = Side(functools.partial(build, batch=batch))
    sides |= {f"share {share}": Side(functools.partial(build, batch=share)) for share in SHARES}
    most = named(args.ranks[-1])
    question = Question("seconds", "seconds a step", more_is_better=False, peers=(named(1),), ours=most)
    harness.run(sides, question, args, fresh=True, table=functools.partial(table, picture=args.picture))


def named(ranks: int) -> str:
    return f"{ranks} rank{'s' * (ranks > 1)}"


def ranks_side(ranks: int, batch: int) -> Side:
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec") or "mpiexec"
    launcher = (mpiexec, "--bind-to", "core", "--map-by", ":OVERSUBSCRIBE", "-n", str(ranks))
    environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return Side(functools.partial(build, batch=batch, distributed=True), environment, launcher)


def build(args: argparse.Namespace, batch: int, distributed: bool = False) -> Ready:
    sys.path.append(str(harness.POETRY))
    from corpus.tasks import Batch
    from learning import ranks
    from learning.training import train_step
    from model import PoemModel

    import minidl

    size = sizes.chosen(args)._replace(batch=batch)
    group = ranks.start() if distributed else ranks.SINGLE_PROCESS
    if distributed:
        minidl.set_num_threads(1)
    else:
        harness.hold(minidl, args)
    model = PoemModel(size.vocabulary, size.embedding, size.hidden, layers=size.layers, rng=0)
    schedule = minidl.Constant(minidl.Adam(model.parameters(), size.lr))
    ids = np.random.default_rng(1).integers(0, size.vocabulary, (2, size.steps * batch), dtype=np.int32)
    whole = Batch(*ids, minidl.Packing([batch] * size.steps))
    times: list[float] = []

    def turn() -> dict[str, float]:
        clock = time.perf_counter()
        for _ in range(args.repeat):
            train_step(model, schedule, whole, 1.0, group)
            times.append(time.perf_counter() - clock)
            clock = time.perf_counter()
        return {
            "seconds": statistics.median(times[-args.repeat :]),
            "all_reduce": all_reduce(group, model),
            "bytes": sum(parameter.grad.nbytes for parameter in model.parameters()),
            "sequences": batch,
            "ranks": group.size,
        }

    nats = train_step(model, schedule, whole, 1.0, group)  # warm-up
    if not group.first:
        turn()  # joins the turn of the first rank, which gets the request
        sys.exit(0)
    return Ready(turn, [float(nats.real) / len(whole.targets)] if batch == sizes.chosen(args).batch else [])


def all_reduce(group: Any, model: Any) -> float:
    """The median seconds of a step's two all-reduces, when all ranks arrive at once."""
    times = []
    for _ in range(REPEATS):
        group.all_reduce([0.0])  # as a barrier
        started = time.perf_counter()
        group.all_reduce_gradients(model.parameters())
        group.all_reduce([0.0, 0.0])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def table(question: Question, result: Mapping[str, Any], picture: Path | None) -> str:
    """The measurements, and the projection to more machines."""
    figures = result["figures"]
    rows = [("", "sequences", "ms a step", "quartiles", "sequences a second", "all-reduces, ms", "MB")]
    for side, of in figures.items():
        low, high = (1000 * value for value in result["spread"][side])
        many = of["ranks"] > 1
        rate = of["sequences"] / of["seconds"]
        rows.append(
            (
                side,
                f"{of['sequences']:.0f}",
                f"{1000 * of['seconds']:.1f}",
                f"{low:.1f} to {high:.1f}",
                short(rate),
                f"{1000 * of['all_reduce']:.2f}" if many else "-",
                f"{of['bytes'] / 1e6:.2f}" if many else "-",
            )
        )
    lines = layout(rows)
    shares = {int(of["sequences"]): of["seconds"] for side, of in figures.items() if side.startswith("share ")}
    if len(shares) > 1:
        machine = projection.Machine(shares, int(next(iter(figures.values()))["bytes"]))
        lines += ["", *projected(machine)]
        if picture is not None:
            import scaling_figure

            scaling_figure.draw(machine, figures, picture)
    return "\n".join([*lines, *footer(question, result)])


def projected(machine: projection.Machine) -> list[str]:
    """Tables from the projection, with a machine like this one as a rank."""
    largest = max(machine.seconds)
    rows = [("projected, one machine a rank", "ranks", "strong", "ring only", "weak", "overlapped", "half batch")]
    for link in projection.LINKS:
        for ranks in (16, 256, 4096):
            strong = projection.speedup(machine, ranks, 16 * largest, link)
            alone = projection.speedup(machine, ranks, 16 * largest, link, only_ring=True)
            weak = projection.efficiency(machine, ranks, largest, link)
            hidden = projection.efficiency(machine, ranks, largest, link, overlap=True)
            half = projection.half_batch(machine, ranks, link)
            cells = f"{ranks:,}", f"{strong:.1f} x", f"{alone:.1f} x", f"{weak:.1%}", f"{hidden:.1%}", f"{half:,}"
            rows.append((link.name, *cells))
    lines = layout(rows)
    lines.append(f"strong: a batch of {16 * largest:,} shared; weak: {largest} a rank")
    lines.append("half batch: the smallest with at least half of the perfect speedup")
    for link in projection.LINKS:
        best = [f"{16**k * largest:,}: {projection.most_ranks(machine, 16**k * largest, link):,}" for k in range(4)]
        lines.append(f"{link.name}, batch and its fastest number of ranks: {', '.join(best)}")
    return lines


if __name__ == "__main__":
    harness.main(main)
