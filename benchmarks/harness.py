"""Taking turns: each side of a comparison is a separate process, and only one works at a time.

A program starts itself again for every side (`--side NAME`). That process builds, warms up, reports that it is ready
and waits; the program then gives each side its turn, round by round, and each turn returns one line of figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import results
from processes import BenchmarkError, Process, Side, serve

PAUSE = 0.2  # seconds before a turn: the previous side's threads spin for a while (OpenBLAS: 30 ms) before they sleep
POETRY = Path(__file__).resolve().parent.parent / "examples" / "poetry"
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Parser(argparse.ArgumentParser):
    """Shows the description unformatted, and reports a wrong argument in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all programs have."""
    made = Parser(description)
    made.add_argument("--rounds", type=whole, default=rounds, help=f"turns per side (default: {rounds})")
    made.add_argument("--sides", metavar="A,B,C", help="only these sides")
    made.add_argument("--threads", type=whole, help="threads per side (default: each library's own default)")
    made.add_argument("--side", help=argparse.SUPPRESS)
    add_json(made)
    return made


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, the table on stderr")


def whole(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def numbers(text: str) -> list[int]:
    """An argparse type: whole numbers, separated by commas."""
    return [whole(part) for part in text.split(",")]


def run(
    sides: Mapping[str, Side],
    question: results.Question,
    args: argparse.Namespace,
    *,
    fresh: bool = False,
    table: Callable[[results.Question, Mapping[str, Any]], str] = results.table,
) -> None:
    """Take all turns, show the table, and print the JSON if requested. `fresh`: a new process for every turn."""
    if args.side:
        serve(sides[args.side], args)
    names = args.sides.split(",") if args.sides else list(sides)
    if unknown := [name for name in names if name not in sides]:
        raise BenchmarkError(f"there is no side {unknown[0]!r}; choose from {', '.join(sides)}")
    figures, facts = take_turns({name: sides[name] for name in names}, args.rounds, fresh)
    if question.ours in facts["left_out"]:
        raise BenchmarkError(f"{question.ours} has no figures: {facts['left_out'][question.ours]}")
    if args.rounds == 0:
        print(f"{', '.join(figures)}: nothing timed, but their results agree")
        return
    result = results.summary(question, figures)
    result.update(program=Path(sys.argv[0]).stem, arguments=sys.argv[1:], rounds=args.rounds, **facts)
    print(table(question, result), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result))


def take_turns(sides: Mapping[str, Side], rounds: int, fresh: bool) -> tuple[results.Figures, dict[str, Any]]:
    """The figures of every side that survived all rounds, and facts for the JSON."""
    from tqdm import tqdm

    names, running = list(sides), dict[str, Process]()
    figures: results.Figures = {name: [] for name in names}
    left_out: dict[str, str] = {}
    versions: dict[str, str] = {}

    def start(name: str) -> None:
        running[name] = Process(name, sides[name])
        stack.callback(running[name].close)
        versions.update(running[name].ready())

    def turn(name: str) -> None:
        if fresh and figures[name]:
            running[name].close()
            start(name)
        time.sleep(PAUSE)
        figures[name].append(running[name].turn())

    def attempt(action: Callable[[str], None], name: str) -> None:
        if name in left_out:
            return
        try:
            action(name)
        except BenchmarkError as error:
            left_out[name] = str(error)
            del figures[name]
            tqdm.write(f"{name} is left out: {error}", file=sys.stderr)

    with (
        contextlib.ExitStack() as stack,
        tqdm(total=rounds * len(names), unit="turn", leave=False, disable=None) as progress,
    ):
        for name in names:
            progress.set_description(f"{name} warms up")
            attempt(start, name)
        require_agreement({name: running[name].agree for name in figures})
        for number in range(rounds):
            shift = number % len(names)  # so that no side always follows the same one
            for name in [*names[shift:], *names[:shift]]:
                progress.set_description(name)
                attempt(turn, name)
                progress.update()
    if not figures:
        raise BenchmarkError("no side is left")
    return figures, {"versions": versions, "left_out": left_out}


def require_agreement(agree: Mapping[str, Sequence[float]]) -> None:
    """BenchmarkError unless all sides computed the same, since otherwise they do different work."""
    stated = [(name, list(values)) for name, values in agree.items() if values]
    for name, values in stated[1:]:
        first, expected = stated[0]
        near = [abs(a - b) <= 1e-4 * max(1, abs(b)) for a, b in zip(values, expected, strict=True)]
        if not all(near):
            raise BenchmarkError(f"{first} and {name} compute different things: {expected} and {values}")


def median_seconds(action: Callable[[], object], seconds: float = 1.0, least: int = 3) -> float:
    """The median time of `action`, repeated for at least `seconds` seconds and `least` times."""
    times: list[float] = []
    total = 0.0
    while len(times) < least or total < seconds:
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
        total += times[-1]
    return statistics.median(times)


def hold(library: ModuleType, args: argparse.Namespace) -> None:
    """Limit minidl or torch to --threads threads, if it is given."""
    if args.threads:
        library.set_num_threads(args.threads)


def blas_threads(threads: int | None) -> dict[str, str]:
    """The environment in which NumPy's BLAS uses this many threads."""
    return {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))


def main(program: Callable[[], None]) -> NoReturn:
    """Call `program`; report in one line what keeps it from measuring."""
    try:
        try:
            program()
        except SystemExit as ended:  # from --help, whose text must still be flushed, or a wrong argument
            if ended.code:
                raise
        sys.stdout.flush()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        reason = f"{error}; in the repository's folder: pip install -e '.[bench]'"
    except (BenchmarkError, OSError) as error:
        reason = "" if isinstance(error, BrokenPipeError) else " ".join(str(error).split())  # `| head` is fine
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # leaves nothing to flush at exit
    if not reason:
        sys.exit(0)
    print(f"{Path(sys.argv[0]).name}: error: {reason}", file=sys.stderr)
    sys.exit(2)
