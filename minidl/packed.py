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
    ended = np.searchsorted(np.asarray(sizes[::-1]), np.arange(sizes[0]), side="right")  # steps with sizes <= sequence
    lengths = len(sizes) - ended
    sums = np.concatenate(([0], np.cumsum(lengths)))
    cuts = np.searchsorted(sums, sums[-1] * np.arange(parts + 1) / parts).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]


def repacked(rows: list[slice]) -> tuple[list[slice], list[slice]]:
    """(own, before): where the rows of every time step lie once all follow one another, and what came before them.

    `before` are places in an array that holds the initial states first, and then the state after every row.
    """
    counts = [of_step.stop - of_step.start for of_step in rows]
    starts = [0, *itertools.accumulate(counts[:-1])]
    own = [slice(start, start + n) for start, n in zip(starts, counts, strict=True)]
    befores = [0, *(counts[0] + start for start in starts[:-1])]
    before = [slice(start, start + n) for start, n in zip(befores, counts, strict=True)]
    return own, before


def blocks(*places: list[slice], limit: int) -> list[range]:
    """The time steps in ranges of up to `limit` rows, or one step, in each of which the `places` follow one another."""
    found, begin, rows = [], 0, 0
    for t, here in enumerate(places[0]):
        n = here.stop - here.start
        gap = t > begin and any(of_steps[t].start != of_steps[t - 1].stop for of_steps in places)
        if t > begin and (gap or rows + n > limit):
            found.append(range(begin, t))
            begin, rows = t, 0
        rows += n
    return [*found, range(begin, len(places[0]))]


def joined(of_steps: list[slice], steps: range) -> slice:
    """The places of all `steps` as one, which they are if they follow one another."""
    return slice(of_steps[steps[0]].start, of_steps[steps[-1]].stop)


def ends(rows: list[slice]) -> list[tuple[slice, slice]]:
    """(places, sequences) of those that end, for every time step after which some do."""
    counts = [of_step.stop - of_step.start for of_step in rows]
    return [
        (slice(of_step.start + following, of_step.stop), slice(following, n))
        for of_step, n, following in zip(rows, counts, [*counts[1:], 0], strict=True)
        if following < n
    ]
