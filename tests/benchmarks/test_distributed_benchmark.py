"""benchmarks/distributed.py and the model that it projects with, against values worked out by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mpi_helpers import with_mpi
from poetry_helpers import png_size
from test_benchmarks import BENCHMARKS, run

sys.path.append(str(BENCHMARKS))

import projection
import scaling_figure
from projection import Link, Machine

LINK = Link("one", alpha=1.0, beta=100.0)  # seconds, bytes a second
MACHINE = Machine({1: 10.0, 4: 16.0, 8: 20.0}, size=800)


@pytest.mark.parametrize(
    ("ranks", "ring", "halving"),
    [
        (1, 0, 0),
        (2, 2 * (1 + 4), 2 + 8),
        (4, 6 * (1 + 2), 4 + 12),
        (8, 14 * (1 + 1), 6 + 14),
        (5, 8 * (1 + 1.6), 6 + 12.8),  # three rounds
    ],
)
def test_an_all_reduce_by_hand(ranks: int, ring: float, halving: float) -> None:
    assert projection.ring(ranks, 800, LINK) == pytest.approx(ring)
    assert projection.halving(ranks, 800, LINK) == pytest.approx(halving)
    loss = {1: 0, 2: 1, 4: 2, 8: 3, 5: 3}[ranks]
    assert projection.all_reduces(ranks, 800, LINK) == pytest.approx(min(ring, halving) + loss)
    assert projection.all_reduces(ranks, 800, LINK, only_ring=True) == pytest.approx(ring + loss)


def test_a_share_takes_what_was_measured_and_straight_lines_between() -> None:
    assert [MACHINE.step(share) for share in (0.2, 1, 2.5, 4, 8, 16)] == [10, 10, 13, 16, 20, 28]


def test_speedup_and_efficiency_by_hand() -> None:
    assert projection.step(MACHINE, 2, 8, LINK) == 16 + 10 + 1
    assert projection.step(MACHINE, 2, 8, LINK, overlap=True) == 16
    assert projection.step(MACHINE, 8, 8, LINK, overlap=True) == 23, "the all-reduce is the longer one"
    assert projection.speedup(MACHINE, 2, 8, LINK) == 20 / 27
    assert projection.efficiency(MACHINE, 2, 8, LINK) == 20 / 31
    assert projection.efficiency(MACHINE, 1, 8, LINK) == 1


def test_more_ranks_stop_helping() -> None:
    free = Link("free", 0.0, 1e30)
    assert projection.most_ranks(MACHINE, 8, LINK) == 1
    assert projection.most_ranks(MACHINE, 8, free) == 8, "a share of one sequence is the smallest"
    # t(2 b) = t(b) + 11 seconds of all-reduces where the line of 1 second a sequence has b = 11
    assert projection.half_batch(MACHINE, 2, LINK) == 22
    assert projection.half_batch(MACHINE, 1, free) == 1


def test_the_picture(tmp_path: Path) -> None:
    figures = {
        "1 rank": {"ranks": 1, "seconds": 20.0},
        "2 ranks": {"ranks": 2, "seconds": 11.0},
        "2 ranks, weak": {"ranks": 2, "seconds": 21.0},
    }
    scaling_figure.draw(MACHINE, figures, tmp_path / "scaling.png")
    assert png_size(tmp_path / "scaling.png")[0] > 600


TINY = ("--vocabulary", "20", "--embedding", "4", "--hidden", "4", "--batch", "8", "--steps", "3", "--repeat", "2")


@pytest.mark.slow
@with_mpi
def test_it_measures_two_ranks_and_a_share(tmp_path: Path) -> None:
    out, _ = run("distributed", *TINY, "--rounds", "1", "--sides", "1 rank,2 ranks,share 1,share 4", "--json")
    result = json.loads(out)
    figures = result["figures"]
    assert list(figures) == ["1 rank", "2 ranks", "share 1", "share 4"] and result["left_out"] == {}
    assert [figures[side]["ranks"] for side in figures] == [1, 2, 1, 1]
    assert [figures[side]["sequences"] for side in figures] == [8, 8, 1, 4]
    weights = 20 * 4 + 16 * (4 + 4 + 1) + 20 * 5
    assert figures["2 ranks"]["bytes"] == 4 * weights and figures["2 ranks"]["all_reduce"] > 0


def test_ranks_without_one_rank_are_refused() -> None:
    _, err = run("distributed", "--ranks", "2,4", code=2)
    assert "--ranks must begin with 1" in err and len(err.splitlines()) == 1
