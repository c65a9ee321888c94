"""Where the rows of a packed batch lie: by time step, by thread, by block of time steps.

A packed batch is time-major, its sequences sorted by falling length; `sizes` says how many are alive at each step.
"""

from __future__ import annotations

import itertools

import numpy as np


def steps(sizes: list[int], shard: slice) -> list[slice]:
    """The rows of the sequences of `shard` at every time step that one of them reaches."""
    rows, start = [], 0
    for n in sizes:
        if n <= shard.start:
            break
        rows.append(slice(start + shard.start, start + min(n, shard.stop)))
        start += n
    return rows


def shards(sizes: list[int], parts: int) -> list[slice]:
    """The sequences in up to `parts` parts with nearly equal sums of lengths: the work of each thread."""
    if parts == 1:
        return [slice(0, sizes[0])]
    falls = np.asarray(sizes)
    lengths = len(sizes) - np.searchsorted(falls[::-1], np.arange(sizes[0]), side="right")
    sums = np.concatenate(([0], np.cumsum(lengths)))
    cuts = np.searchsorted(sums, sums[-1] * np.arange(parts + 1) / parts).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]


def blocks(rows: list[slice], limit: int) -> list[dict[int, slice]]:
    """The time steps in blocks of about `limit` rows: in each, by step, the places of that step's rows."""
    found: list[dict[int, slice]] = []
    end = limit
    for t, of_step in enumerate(rows):
        n = of_step.stop - of_step.start
        if end + n > limit:
            found.append({})
            end = 0
        found[-1][t] = slice(end, end + n)
        end += n
    return found


def ends(sizes: list[int]) -> list[tuple[slice, slice]]:
    """(rows, sequences) of those that end, for every time step after which some do."""
    found, start = [], 0
    for n, following in itertools.pairwise([*sizes, 0]):
        if following < n:
            found.append((slice(start + following, start + n), slice(following, n)))
        start += n
    return found
