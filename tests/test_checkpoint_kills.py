"""save, killed at random instants: SIGKILL, on Windows TerminateProcess.

MINIDL_THOROUGH=1 makes 250 kills of the 15. Run as a program, this file is the process that starts savers and kills
them: a new one is at work within milliseconds where the system can fork, since everything is imported by then.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_helpers import THOROUGH, same
from helpers import PATHS

import minidl

ROUNDS, KILLS = (10, 25) if THOROUGH else (1, 15)


def content(step: int) -> dict[str, np.ndarray]:
    return {"a": np.full(100_000, step, np.float32), "b": np.full((3, 5), -step)}


def save_for_ever(path: Path, step: int, told: Connection) -> None:
    told.send(step)  # at work from here on
    while True:
        step += 1
        minidl.save(path, content(step), {"step": step})
        told.send(step)


def kill_one(context: Any, path: Path, step: int, delay: float) -> int:
    """The last step that a saver said it had saved, from `step` on, before it was killed after `delay` s of work."""
    hears, tells = context.Pipe(duplex=False)
    saver = context.Process(target=save_for_ever, args=(path, step, tells))
    saver.start()
    tells.close()
    step = hears.recv()
    time.sleep(delay)
    assert saver.is_alive(), "it ended by itself"
    saver.kill()
    saver.join()
    with contextlib.suppress(EOFError, OSError):
        while True:
            step = hears.recv()
    return step


def main(path: Path, seed: int, kills: int) -> dict[str, int]:
    """What the kills found: how many left an unfinished file, a new file that was not reported yet, or a loss."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    rng, counts = random.Random(seed), {"kills": 0, "unfinished": 0, "unreported": 0, "lost": 0}
    step = minidl.load(path)[1]["step"] if path.exists() else 0
    start = time.perf_counter()
    for _ in range(3):
        step += 1
        minidl.save(path, content(step), {"step": step})
    duration = (time.perf_counter() - start) / 3
    for _ in range(kills):
        reported = kill_one(context, path, step, rng.uniform(0, 3) * duration)
        left = [other for other in path.parent.iterdir() if other != path]
        try:
            tensors, metadata = minidl.load(path)
            step = metadata["step"]
            lost = step not in (reported, reported + 1) or not same(tensors, content(step)) or len(left) > 1
        except minidl.CheckpointError:
            lost = True
        for name, found in (("kills", 1), ("unfinished", len(left)), ("unreported", step > reported), ("lost", lost)):
            counts[name] += found
        if lost:
            break
        for other in left:
            other.unlink()
    return counts


def test_a_checkpoint_survives_kills_at_random_instants(tmp_path: Path) -> None:
    """The file is whole, of the last step that was reported as saved or of the one after it."""
    total: dict[str, int] = {}
    for number in range(ROUNDS):
        done = subprocess.run(
            [sys.executable, __file__, str(tmp_path / "c"), str(number), str(KILLS)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        for name, count in json.loads(done.stdout).items():
            total[name] = total.get(name, 0) + count
        assert total["lost"] == 0, total
    print(total)
    assert total["kills"] == ROUNDS * KILLS
    assert total["unfinished"] + total["unreported"] > 0, f"no kill came in the midst of a save: {total}"


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
