"""The embedding's gradient on NumPy, whose np.add.at would add one number at a time."""

from __future__ import annotations

import numpy as np


def add_rows(dweight: np.ndarray, ids: np.ndarray, dy: np.ndarray) -> None:
    """dweight[ids[n]] += dy[n] for every n, repeated ids included; dweight (V, D), ids (N,), dy (N, D).

    Sorting turns every id into a run of rows. All runs of one length form a block (runs, length, D), which is summed
    over its middle axis.
    """
    order = np.argsort(ids.astype(np.min_scalar_type(len(dweight) - 1)), kind="stable")  # small integers sort fast
    ordered = ids[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    lengths = np.diff(starts, append=len(ids))

    for length in np.unique(lengths):
        runs = starts[lengths == length]
        dweight[ordered[runs]] += dy[order[runs[:, None] + np.arange(length)]].sum(axis=1)
