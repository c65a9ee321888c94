"""Does the memory of a process that trains, writes and saves for an hour stay flat?

    python benchmarks/soak.py --minutes 60 --out soak

Each round, with poems of random lengths, runs training steps of the poem model with dropout and clipping, evaluates it,
writes free verse, saves and reloads a checkpoint of model and optimizer, and changes the number of threads. Every few
seconds it samples the process's resident memory, open files (on Windows: handles) and threads. The verdict is the slope
of the memory over the second half, in KiB a minute. Writes soak.jsonl and soak.png into --out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import poems  # noqa: F401 (makes the poetry example importable)
import psutil
from results import layout

LEAST = 4  # samples that a verdict needs
VOCABULARY, SIZE, LONGEST, POEMS = 1500, 96, 40, 256
Sample = dict[str, float]


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_argument("--minutes", type=positive, default=60.0, help="how long (default: 60)")
    parser.add_argument("--every", type=positive, default=5.0, help="seconds between samples (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("soak"), metavar="DIR", help="where the results go")
    harness.add_json(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    samples = soak(args.minutes * 60, args.every, args.out / "soak.jsonl")
    draw(args.out / "soak.png", samples)
    result = verdict(samples)
    rows = [("", "MiB", "open files", "threads", "rounds")]
    for name, place in (("first", 0), ("half-way", len(samples) // 2), ("last", -1)):
        sample = samples[place]
        cells = (f"{sample[key]:,.0f}" for key in ("files", "threads", "rounds"))
        rows.append((name, f"{sample['mib']:.1f}", *cells))
    slope = f"{result['kib_per_minute']:+.1f} KiB a minute over the second half, of {result['minutes']:.1f} minutes"
    print(json.dumps(result) if args.json else "\n".join([*layout(rows), slope]))


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def soak(seconds: float, every: float, log: Path) -> list[Sample]:
    """Run and return the samples; each is logged at once."""
    from tqdm import tqdm

    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as file:
        work, rounds, started = build(Path(folder)), 0, time.monotonic()
        with tqdm(total=round(seconds), unit="s", leave=False, disable=None) as progress:
            while (passed := time.monotonic() - started) < seconds or len(samples) < LEAST:
                work(rounds)
                rounds += 1
                progress.update(min(round(passed), round(seconds)) - progress.n)
                if passed >= every * (len(samples) + 1):
                    samples.append({"seconds": passed, "rounds": rounds, **look()})
                    print(json.dumps(samples[-1]), file=file, flush=True)
    return samples


def look() -> Sample:
    """A sample of the process now."""
    process = psutil.Process()
    files = process.num_handles() if psutil.WINDOWS else process.num_fds()
    return {"mib": process.memory_info().rss / 2**20, "files": files, "threads": process.num_threads()}


def build(folder: Path) -> Callable[[int], None]:
    """A function that runs one round."""
    from corpus.tasks import Rows
    from corpus.vocabulary import BEGIN, END, UNKNOWN, Vocabulary
    from learning.training import evaluate, train_step
    from model import PoemModel, load_model, save_model
    from verse.writing import write_poems

    import minidl

    characters = [chr(0x4E00 + place) for place in range(VOCABULARY)]
    vocabulary = Vocabulary([BEGIN, END, UNKNOWN, *characters])
    model = PoemModel(len(vocabulary), SIZE, SIZE, dropout=0.3, tied=True, rng=0)
    optimizer = minidl.Adam(model.parameters(), 1e-3)
    schedule, rng, cores = minidl.Constant(optimizer), np.random.default_rng(0), minidl.get_num_threads()

    def work(number: int) -> None:
        minidl.set_num_threads(1 + number % max(2, cores))
        lines = ["".join(rng.choice(characters, rng.integers(1, LONGEST))) for _ in range(POEMS)]
        rows = Rows(lines, vocabulary)
        for batch in rows.batches(int(rng.integers(16, 97)), rng):
            train_step(model, schedule, batch, 1.0)
        evaluate(model, rows.batches(64, 0))
        write_poems(model, vocabulary, [""] * int(rng.integers(1, 9)), LONGEST, rng=rng)
        save_model(folder / "model.safetensors", model, vocabulary, round=number)
        minidl.save(folder / "optimizer.safetensors", optimizer.state_dict(), {})
        model.load_state_dict(load_model(folder / "model.safetensors")[0].state_dict())
        optimizer.load_state_dict(minidl.load(folder / "optimizer.safetensors")[0])

    return work


def verdict(samples: list[Sample]) -> dict[str, float]:
    """The slope of the memory over the second half, and the first and last samples."""
    minutes, mib = np.array([[sample["seconds"] / 60, sample["mib"]] for sample in samples[len(samples) // 2 :]]).T
    result = {"kib_per_minute": float(np.polyfit(minutes, mib * 1024, 1)[0]), "minutes": float(minutes[-1])}
    for name, place in (("first", 0), ("last", -1)):
        result |= {f"{key}_{name}": samples[place][key] for key in ("mib", "files", "threads", "rounds")}
    return result


def draw(path: Path, samples: list[Sample]) -> None:
    from common import figures  # of the poetry example

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    minutes = [sample["seconds"] / 60 for sample in samples]
    left.plot(minutes, [sample["mib"] for sample in samples], color=figures.BLUE)
    left.set(xlabel="minutes", ylabel="resident MiB", ylim=(0, None))
    for key, label, color in (("files", "open files", figures.ORANGE), ("threads", "threads", figures.GREY)):
        right.plot(minutes, [sample[key] for sample in samples], color=color, label=label)
    right.set(xlabel="minutes", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    harness.main(main)
