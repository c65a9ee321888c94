"""Run by test_checkpoint_kills in a separate process: savers that are killed again and again."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import minidl

SIZE = 400_000  # float64: 3.2 MB take long enough for a kill to land in the middle
LONGEST = 0.06  # seconds from a saver's first report to its end: several saves

# A forked saver starts at once; outside Linux, forking is not safe with the system's own threads.
processes = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def save_for_ever(path: Path, step: int, reports: Connection) -> None:
    while True:
        minidl.save(path, {"a": np.full(SIZE, step, np.float64)}, {"step": step})
        reports.send(step)
        step += 1


def kill_savers(path: Path, kills: int, seed: int) -> dict[str, int]:
    """Counts of kills: in all, before the new file was in place, after it but unreported, and with lost data."""
    rng = random.Random(seed)
    minidl.save(path, {"a": np.zeros(SIZE)}, {"step": 0})
    found = {"kills": 0, "unfinished": 0, "unreported": 0, "lost": 0}
    step = 0
    for _ in range(kills):
        mine, its = processes.Pipe(duplex=False)
        saver = processes.Process(target=save_for_ever, args=(path, step + 1, its))
        saver.start()
        its.close()
        reported = mine.recv()
        time.sleep(rng.uniform(0, LONGEST))
        saver.kill()  # SIGKILL; on Windows TerminateProcess
        saver.join()
        if saver.exitcode in (0, 1):
            raise RuntimeError("the saver ended on its own")
        try:
            while True:
                reported = mine.recv()
        except EOFError:
            mine.close()
        left = [file for file in path.parent.iterdir() if file != path]
        for file in left:  # old enough for the next saver to delete
            os.utime(file, (0, 0))
        found["kills"] += 1
        found["unfinished"] += bool(left)
        try:
            tensors, metadata = minidl.load(path)
            step = metadata["step"]
            whole = step in (reported, reported + 1) and bool((tensors["a"] == step).all()) and len(left) <= 1
        except minidl.CheckpointError:
            whole = False
        found["unreported"] += step == reported + 1
        found["lost"] += not whole
    return found
