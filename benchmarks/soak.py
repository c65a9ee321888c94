"""Does a process that trains, writes and stores for an hour grow, or leave handles or threads open?

    python benchmarks/soak.py --minutes 60 --out soak.png

A small poem model trains on lines of random lengths, writes poems, and is saved and loaded, over and over. Every few
seconds the process looks at its resident memory, its open handles and its threads. The first fifth of the time counts
as warming up. The slope is a least-squares line through the memory of the second half; the process is told to be
steady if that is at most --limit KiB a minute and neither handles nor threads are more at the end than after the
warm-up. A slope over less than some ten minutes says little.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import memory
import numpy as np
import results
from harness import POETRY

sys.path.append(str(POETRY))
CHARACTERS = [chr(0x4E00 + number) for number in range(500)]
LINES, LONGEST, BATCH = 400, 49, 32
FEWEST = 20  # samples of a run however short
KINDS = ("training steps", "poems written, 8 at a time", "checkpoints saved and loaded")


class Sample(NamedTuple):
    seconds: float  # since the start
    kibibytes: float  # resident
    handles: int  # open files, pipes and the like
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=minutes, default=60.0, help="how long (default: 60)")
    parser.add_argument("--limit", type=float, default=64.0, help="KiB a minute that count as steady (default: 64)")
    parser.add_argument("--threads", type=harness.whole, help="threads of minidl (default: all cores)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw the curves there, as PNG")
    harness.add_json(parser)
    args = parser.parse_args()
    samples, counts = soak(60 * args.minutes, args.threads)
    result = {**summary(samples, args.limit), "done": counts, "minutes": args.minutes}
    result |= {"program": "soak", "versions": results.versions(), **results.machine()}
    print(table(result), file=sys.stderr if args.json else sys.stdout)
    if args.out:
        draw(samples, result, args.out)
    if args.json:
        print(json.dumps({**result, "samples": samples}))


def minutes(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text!r}")
    return value


def soak(seconds: float, threads: int | None) -> tuple[list[Sample], dict[str, int]]:
    """Work for so long: what was seen, and how often each thing was done."""
    from tqdm import tqdm

    samples, counts = list[Sample](), dict[str, int]()
    pause = min(5.0, seconds / FEWEST)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=round(seconds), unit="s", leave=False) as bar:
        works = work(Path(folder) / "model.safetensors", threads)
        counts[next(works)] = 1  # which imports, too
        start = time.monotonic()
        while not samples or samples[-1].seconds < seconds or len(counts) < len(KINDS):
            name = next(works)
            counts[name] = counts.get(name, 0) + 1
            now = time.monotonic() - start
            if not samples or now - samples[-1].seconds >= pause or now >= seconds:
                samples.append(Sample(round(now, 2), *look()))
                bar.set_postfix_str(f"{samples[-1].kibibytes / 1024:.1f} MiB", refresh=False)
                bar.update(min(round(now), bar.total) - bar.n)
    return samples, counts


def work(path: Path, threads: int | None) -> Iterator[str]:
    """One thing after the other without end, and its name when it is done."""
    from model import PoemModel, load_model, save_model
    from training import Rows
    from verse import write_poems
    from vocabulary import BEGIN, END, UNKNOWN, Vocabulary

    import minidl

    if threads:
        minidl.set_num_threads(threads)
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary([BEGIN, END, UNKNOWN, *CHARACTERS])
    rows = Rows(["".join(rng.choice(CHARACTERS, rng.integers(1, LONGEST + 1))) for _ in range(LINES)], vocabulary)
    model = PoemModel(len(vocabulary), 32, 64, 0.2, rng=0)
    step = 0
    while True:
        optimizer = minidl.Adam(model.parameters(), lr=1e-3)
        for batch in rows.batches(BATCH, rng):
            optimizer.zero_grad()
            model.forward_backward(batch, step)
            minidl.clip_grad_norm(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            yield KINDS[0]
        write_poems(model, vocabulary, ["", *CHARACTERS[:7]], LONGEST, rng=rng, temperature=0.8)
        yield KINDS[1]
        save_model(path, model, vocabulary)
        before = {name: values.tobytes() for name, values in model.state_dict().items()}
        model, vocabulary, _ = load_model(path)
        if {name: values.tobytes() for name, values in model.state_dict().items()} != before:
            raise harness.BenchmarkError("a checkpoint came back with other weights")
        yield KINDS[2]


def look() -> tuple[float, int, int]:
    """(resident KiB, open handles, threads) of this process."""
    gc.collect()  # what lies in a cycle is no leak
    if sys.platform == "linux":
        handles = len(os.listdir("/proc/self/fd")) - 1  # the listing's own
        return memory.now() * 1024, handles, len(os.listdir("/proc/self/task"))
    import psutil

    process = psutil.Process()
    handles = process.num_handles() if sys.platform == "win32" else process.num_fds()
    return process.memory_info().rss / 1024, handles, process.num_threads()


def summary(samples: Sequence[Sample], limit: float) -> dict[str, Any]:
    """Slopes, firsts and lasts, and the verdict."""
    whole = samples[-1].seconds
    warm = [sample for sample in samples if sample.seconds >= whole / 5]
    half = [sample for sample in samples if sample.seconds >= whole / 2]
    times = np.array([sample.seconds / 60 for sample in half])
    sizes = np.array([sample.kibibytes for sample in half])
    times = times - times.mean()
    spread = float(times @ times)
    slope = float(times @ sizes) / spread if spread else 0.0
    first, last = warm[0], samples[-1]
    reasons = [f"its memory grew by {slope:.0f} KiB a minute"] if slope > limit else []
    for name in ("handles", "threads"):
        before, after = getattr(first, name), getattr(last, name)
        if after > before:
            reasons.append(f"its {name} grew from {before} to {after}")
    return {
        "slope_kib_per_minute": slope,
        "limit_kib_per_minute": limit,
        "rss_kib": [samples[0].kibibytes, first.kibibytes, last.kibibytes],
        "rss_kib_most": max(sample.kibibytes for sample in samples),
        "handles": [samples[0].handles, first.handles, last.handles],
        "threads": [samples[0].threads, first.threads, last.threads],
        "python_threads": threading.active_count(),
        "steady": not reasons,
        "verdict": "; ".join(reasons) or "steady",
    }


def table(result: dict[str, Any]) -> str:
    def shown(label: str, values: Sequence[float], text: Callable[[float], str]) -> list[str]:
        return [label, *map(text, values)]

    rows = [
        ["", "start", "warm", "end"],
        shown("resident MiB", result["rss_kib"], lambda value: f"{value / 1024:.1f}"),
        shown("open handles", result["handles"], str),
        shown("threads", result["threads"], str),
    ]
    done = ", ".join(f"{count:,} {name}" for name, count in result["done"].items())
    slope = f"{result['slope_kib_per_minute']:+.1f} KiB a minute in the second half"
    return "\n".join([*results.layout(rows), slope, f"{result['minutes']:g} minutes: {done}", result["verdict"]])


def draw(samples: Sequence[Sample], result: dict[str, Any], path: Path) -> None:
    """Memory above, handles and threads below, over the minutes."""
    import plots
    from matplotlib.figure import Figure

    times = [sample.seconds / 60 for sample in samples]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    sizes = [sample.kibibytes / 1024 for sample in samples]
    above.plot(times, sizes, color=plots.COLORS["minidl"])
    slope = result["slope_kib_per_minute"]
    above.set(ylabel="resident MiB", ylim=(0, 1.15 * max(sizes)), title=f"{slope:+.1f} KiB a minute in the second half")
    below.plot(times, [sample.handles for sample in samples], color=plots.COLORS["torch"], label="open handles")
    below.plot(times, [sample.threads for sample in samples], color=plots.COLORS["jax"], label="threads")
    below.set(xlabel="minutes", ylim=(0, 1.2 * max(max(sample[2:]) for sample in samples)))
    below.legend(frameon=False, loc="lower right")
    figure.savefig(path, format="png", dpi=120)


if __name__ == "__main__":
    harness.main(main)
