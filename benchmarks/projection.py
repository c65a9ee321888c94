"""Scaling to more machines than are available: a model of a training step's time, with measured constants.

A step of N ranks on a batch of B sequences takes

    T(N, B) = t(B / N) + A(N)

t(b) is one rank's time for a share of b sequences, interpolated linearly between measured shares (and extrapolated
beyond the largest). A(N) is the all-reduce of S bytes of gradients, then one of 16 bytes for the loss:

    ring                 2 (N - 1) (alpha + S / (N beta))              Patarasuk & Yuan 2009
    halving, doubling    2 log2(N) alpha + 2 (N - 1) / N S / beta      Rabenseifner 2004
    16 bytes             log2(N) alpha

alpha is a link's latency, the time until the first byte of a message arrives, beta its bandwidth in bytes a second. MPI
uses the better of the two for the size, and so does A unless `only_ring` is set. Left out: the sums (each rank adds S
bytes, a few milliseconds), waiting for slow ranks, and shared links. The program does not overlap communication with
the backward pass; `overlap` gives the time with a perfect overlap, max(t, A).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Link(NamedTuple):
    """A network: its latency in seconds, and its bandwidth in bytes a second."""

    name: str
    alpha: float
    beta: float


# alpha: assumed, for TCP over Ethernet and for RDMA, MPI's overhead included
LINKS = (Link("10 Gbit/s", 25e-6, 10e9 / 8), Link("100 Gbit/s", 3e-6, 100e9 / 8))
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Machine(NamedTuple):
    """One rank's measurements: seconds a step by the number of sequences in its share, and the gradients' bytes."""

    seconds: Mapping[int, float]
    size: int

    def step(self, share: float) -> float:
        """t(share); a share of less than one sequence takes as long as one, because some rank has one."""
        shares = sorted(self.seconds)
        share, last = max(1.0, share), shares[-2:]
        times = [self.seconds[b] for b in shares]
        if share > last[1]:
            slope = (times[-1] - times[-2]) / (last[1] - last[0])
            return times[-1] + slope * (share - last[1])
        return float(np.interp(share, shares, times))


def ring(ranks: int, size: int, link: Link) -> float:
    return 2 * (ranks - 1) * (link.alpha + size / (ranks * link.beta))


def halving(ranks: int, size: int, link: Link) -> float:
    return 2 * math.ceil(math.log2(ranks)) * link.alpha + 2 * (ranks - 1) / ranks * size / link.beta


def all_reduces(ranks: int, size: int, link: Link, only_ring: bool = False) -> float:
    """A(ranks), 0 for one rank."""
    best = ring(ranks, size, link) if only_ring else min(f(ranks, size, link) for f in (ring, halving))
    return best + math.ceil(math.log2(ranks)) * link.alpha


def step(machine: Machine, ranks: int, batch: float, link: Link, *, overlap: bool = False, **how: bool) -> float:
    """T(ranks, batch)."""
    computing, waiting = machine.step(batch / ranks), all_reduces(ranks, machine.size, link, **how)
    return max(computing, waiting) if overlap else computing + waiting


def speedup(machine: Machine, ranks: int, batch: float, link: Link, **how: bool) -> float:
    """The speedup over one rank for a batch."""
    return machine.step(batch) / step(machine, ranks, batch, link, **how)


def efficiency(machine: Machine, ranks: int, share: float, link: Link, **how: bool) -> float:
    """Sequences a second per rank, relative to a single rank with the same share."""
    return machine.step(share) / step(machine, ranks, ranks * share, link, **how)


def most_ranks(machine: Machine, batch: int, link: Link) -> int:
    """The number in RANKS at which a batch is fastest: more do not help."""
    return min(RANKS, key=lambda ranks: step(machine, ranks, batch, link))


def half_batch(machine: Machine, ranks: int, link: Link) -> int:
    """The smallest batch, a multiple of the ranks, with at least half of the perfect speedup."""
    shares = (share for share in range(1, 10**6) if speedup(machine, ranks, share * ranks, link) >= ranks / 2)
    return next(shares) * ranks
