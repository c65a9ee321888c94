"""What test_checkpoint_kills runs in a process of its own: a saver that is killed again and again."""

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

# A forked saver starts at once; elsewhere than on Linux a fork does not go well with the system's own threads.
processes = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def save_for_ever(path: Path, step: int, reports: Connection) -> None:
    while True:
        minidl.save(path, {"a": np.full(SIZE, step, np.float64)}, {"step": step})
        reports.send(step)
        step += 1


def kill_savers(path: Path, kills: int, seed: int) -> dict[str, int]:
    """How many of `kills` landed before the new file was in place, how many after, and how many lost something."""
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
            raise RuntimeError("the saver ended by itself")
        try:
            while True:
                reported = mine.recv()
        except EOFError:
            mine.close()
        left = [file for file in path.parent.iterdir() if file != path]
        for file in left:  # the next saver is to delete them
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
