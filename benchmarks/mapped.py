"""Is training slower from a mapped file of at least 1 GB, and does its memory stay flat?

    python benchmarks/mapped.py --out mapped

Repeats the poems of all 58 Tang files in a text, each time in a different order, until their ids fill --gigabytes, and
encodes it with examples/poetry/prepare.py. Two sides then train in turns, with the model, dropout and clipping of
`train.py --recipe best`, in batches of 128: `mapped` from that folder, `memory` from the same poems, once, in memory,
as in train.py. Finally, all batches of an epoch are drawn from the map without training, so that all of it is touched.
Anonymous memory (RssAnon) is the process's own; mapped pages (RssFile) are the file's, and the system can reclaim
them. Only Linux reports both. Writes mapped.json and mapped.png into --out; temporarily needs 2.5 times --gigabytes of
disk space in --folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import memory
import numpy as np
import poems
import results
from processes import BenchmarkError, Ready, Side, serve

if TYPE_CHECKING:
    from corpus.tasks import Batch, Task

FOLDER = "MINIDL_MAPPED"  # the environment variable that names the prepared folder to a side
LOG = "memory.jsonl"  # beside it: the mapped side's memory
TEXT, PREPARED = "repeated.txt", "prepared"
BATCH = 128
LOOKS = 200  # samples of the memory over an epoch's batches
ON_LINUX = sys.platform == "linux"
Look = dict[str, float]


def main() -> None:
    parser = harness.parser(__doc__, rounds=12)
    poems.add_options(parser)
    parser.add_argument("--gigabytes", type=positive, default=1.0, help="GB of ids to map, at least (default: 1)")
    parser.add_argument("--steps", type=harness.whole, default=40, help="training steps per turn (default: 40)")
    parser.add_argument("--files", type=harness.whole, default=58, help="Tang files to repeat (default: 58)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="a folder with space for the text and the map")
    parser.add_argument("--out", type=Path, default=Path("mapped"), metavar="DIR", help="where the results go")
    args = parser.parse_args()
    if args.side:
        serve({"mapped": Side(build_mapped), "memory": Side(build_memory)}[args.side], args)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        result = measure(args, Path(name))
    (args.out / "mapped.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    if ON_LINUX:
        draw(args.out / "mapped.png", result)
    print("\n".join(table(result)), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result))


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    value = float(text) if text.replace(".", "", 1).isdecimal() else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    made = prepare(args, folder)
    environment = {FOLDER: str(folder)}
    sides = {"mapped": Side(build_mapped, environment), "memory": Side(build_memory, environment)}
    figures, facts = harness.take_turns(sides, args.rounds, fresh=False)
    if facts["left_out"]:
        raise BenchmarkError(f"a side has no figures: {facts['left_out']}")
    question = results.Question(
        "rate", "characters a second", more_is_better=True, peers=("memory",), ours="mapped", ours_on_top=True
    )
    result = results.summary(question, figures)
    result.update(program="mapped", arguments=sys.argv[1:], rounds=args.rounds, **facts, **made)
    log = (folder / LOG).read_text(encoding="utf-8").splitlines()
    return {**result, "training": [json.loads(line) for line in log], **walk(folder)}


def prepare(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Make the text and the prepared folder, then delete the text. Returns sizes, seconds and memory."""
    from corpus import tang
    from learning import settings

    from tqdm import tqdm

    best = settings.RECIPES["best"]
    found = tang.load(args.corpus, args.files, max_length=best["max_length"], progress=False).poems
    repeats = math.ceil(args.gigabytes * 1e9 / (2 * 0.89 * sum(len(poem) + 2 for poem in found)))  # 89 % train
    rng = np.random.default_rng(0)
    with (folder / TEXT).open("w", encoding="utf-8", newline="\n") as file:
        for _ in tqdm(range(repeats), desc="writing the text", leave=False, disable=None):
            file.writelines(f"{found[place]}\n" for place in rng.permutation(len(found)))
    size = (folder / TEXT).stat().st_size
    # scaled with the repeats, so that both sides have the same vocabulary
    count = str(repeats * best["min_count"])
    words = [sys.executable, str(harness.POETRY / "prepare.py"), "--text", str(folder / TEXT), "--min-count", count]
    started, most, before = time.perf_counter(), 0.0, os.times()
    with subprocess.Popen([*words, "--out", str(folder / PREPARED)]) as process:
        while process.poll() is None:
            most = max(most, memory.status("RssAnon", process.pid)) if ON_LINUX else most
            time.sleep(0.1)
    if process.returncode:
        raise BenchmarkError("prepare.py failed")
    seconds, after = time.perf_counter() - started, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    (folder / TEXT).unlink()
    ids = (folder / PREPARED / "train.ids.npy").stat().st_size
    made = {"text_bytes": size, "map_bytes": ids, "repeats": repeats}
    return {**made, "prepare_seconds": seconds, "prepare_busy_seconds": busy, "prepare_mib": most}


def build_mapped(args: argparse.Namespace) -> Ready:
    from corpus import prepared

    folder = Path(os.environ[FOLDER])
    return trained(args, prepared.load(folder / PREPARED).task(BATCH), folder / LOG)


def build_memory(args: argparse.Namespace) -> Ready:
    from corpus.tasks import packed_task
    from corpus.vocabulary import Vocabulary
    from learning import settings, sources

    best = settings.RECIPES["best"]
    where = {"text": None, "corpus": args.corpus, "files": args.files, "max_length": best["max_length"]}
    parts = sources.read_parts(argparse.Namespace(**where))
    vocabulary = Vocabulary.build(parts[0], least=best["min_count"])
    return trained(args, packed_task(parts, vocabulary, BATCH))


def trained(args: argparse.Namespace, task: Task, log: Path | None = None) -> Ready:
    """A turn is --steps training steps, drawing their batches included. Sides must agree on the vocabulary size."""
    from learning import settings
    from learning.training import RunningLoss, build_optimizer, train_step
    from model import PoemModel

    import minidl

    harness.hold(minidl, args)
    best = {**settings.DEFAULTS, **settings.RECIPES["best"]}
    sizes = (best[name] for name in ("embedding_size", "hidden_size", "dropout", "tied"))
    model = PoemModel(len(task.vocabulary), *sizes, rng=0)
    schedule = minidl.Constant(build_optimizer(best["optimizer"], model.parameters(), best["lr"]))
    rng = np.random.default_rng(0)
    batches: Iterator[Batch] = itertools.chain.from_iterable(task.train(rng) for _ in itertools.count())

    def steps(count: int) -> float:
        """Train for `count` steps; returns the number of characters and end marks."""
        running = RunningLoss()
        for batch in itertools.islice(batches, count):
            running.add(train_step(model, schedule, batch, best["clip"]), batch)
        return running.targets

    def turn() -> dict[str, float]:
        started = time.perf_counter()
        targets = steps(args.steps)
        seconds = time.perf_counter() - started
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                print(json.dumps({"batches": schedule.steps, **look()}), file=file)
        return {"rate": targets / seconds, "seconds": seconds, "targets": targets}

    steps(args.steps)
    return Ready(turn, [len(task.vocabulary)])


def look() -> Look:
    """The process's own MiB and those of files; empty except on Linux."""
    return {"anonymous": memory.status("RssAnon"), "file": memory.status("RssFile")} if ON_LINUX else {}


def walk(folder: Path) -> dict[str, Any]:
    """The memory over all batches of an epoch, and the time to reach its middle."""
    from corpus import prepared

    from tqdm import tqdm

    started = time.perf_counter()
    task = prepared.load(folder / PREPARED).task(BATCH)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    next(iter(task.train(np.random.default_rng(0), task.steps // 2)))
    middle = time.perf_counter() - started
    looks, every = [], max(1, task.steps // LOOKS)
    started = time.perf_counter()
    for number, _ in enumerate(
        tqdm(task.train(np.random.default_rng(0)), total=task.steps, leave=False, disable=None), 1
    ):
        if number % every == 0:
            looks.append({"batches": float(number), **look()})
    seconds = time.perf_counter() - started
    return {"walk": looks, "walk_seconds": seconds, "open_seconds": opened, "middle_seconds": middle}


def table(result: dict[str, Any]) -> list[str]:
    rows = [("", "characters a second", "quartiles")]
    for side in ("mapped", "memory"):
        low, high = result["spread"][side]
        median = result["figures"][side]["rate"]
        rows.append((side, results.short(median), f"{results.short(low)} to {results.short(high)}"))
    rate = result["ratio"]
    made = f"{result['prepare_seconds']:.0f} s ({result['prepare_busy_seconds']:.0f} s of CPU time)"
    drawn = f"{result['walk_seconds']:.0f} s to draw all {result['walk'][-1]['batches']:,.0f} batches"
    lines = [
        *results.layout(rows),
        f"ratio {rate:.3f}: mapped / memory, {result['rounds']} rounds, {result['cores']} cores, {result['cpu']}",
        f"{result['text_bytes'] / 1e9:.2f} GB of text (the poems {result['repeats']} times) made into a map of "
        f"{result['map_bytes'] / 1e9:.2f} GB in {made}",
        f"{result['open_seconds']:.2f} s to open it, {result['middle_seconds']:.2f} s to the batch in the epoch's "
        f"middle, {drawn}",
    ]
    if not ON_LINUX:
        return [*lines, "only Linux reports how much memory is a process's own"]
    lines.append(f"prepare.py used at most {result['prepare_mib']:.0f} MiB of its own")
    for name, what in (("training", "training steps"), ("walk", "an epoch's batches")):
        first, last = result[name][0], result[name][-1]
        most = max(sample["anonymous"] for sample in result[name])
        lines.append(
            f"{what}: own {first['anonymous']:.1f} MiB at first, {last['anonymous']:.1f} at the end, {most:.1f} at "
            f"most; of files {first['file']:.0f} and {last['file']:.0f}"
        )
    return lines


def draw(path: Path, result: dict[str, Any]) -> None:
    from common import figures  # of the poetry example

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("training", "training steps"), ("walk", "batches of an epoch, drawn alone")),
        strict=True,
    ):
        batches = [sample["batches"] for sample in result[name]]
        for key, words, color in (("file", "of files", figures.ORANGE), ("anonymous", "its own", figures.BLUE)):
            axes.plot(batches, [sample[key] for sample in result[name]], color=color, label=words)
        axes.set(xlabel=label, ylabel="resident MiB", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    harness.main(main)
