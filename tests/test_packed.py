"""Where the rows of a packed batch lie, by hand. A wrong cut may still train, with less of the work split."""

from __future__ import annotations

from itertools import pairwise

import pytest

from minidl import packed

SIZES = [4, 3, 3, 1, 1]  # lengths 5, 3, 3, 1
STEPS = [slice(0, 4), slice(4, 7), slice(7, 10), slice(10, 11), slice(11, 12)]


def test_the_rows_of_a_shard() -> None:
    assert packed.steps(SIZES, slice(0, 4)) == STEPS
    assert packed.steps(SIZES, slice(0, 1)) == [slice(n, n + 1) for n in (0, 4, 7, 10, 11)]
    assert packed.steps(SIZES, slice(1, 4)) == [slice(1, 4), slice(5, 7), slice(8, 10)]
    assert packed.steps(SIZES, slice(3, 4)) == [slice(3, 4)]


@pytest.mark.parametrize(
    "sizes, parts, cuts",
    [
        (SIZES, 1, [0, 4]),
        (SIZES, 2, [0, 2, 4]),
        (SIZES, 3, [0, 1, 2, 4]),
        ([1, 1, 1], 4, [0, 1]),
        ([4, 4], 2, [0, 2, 4]),
        ([6, 1, 1, 1, 1, 1], 2, [0, 1, 6]),
    ],
)
def test_shards_have_nearly_equal_work(sizes: list[int], parts: int, cuts: list[int]) -> None:
    assert [(s.start, s.stop) for s in packed.shards(sizes, parts)] == list(pairwise(cuts))


def test_repacked_rows_follow_one_another() -> None:
    own, before = packed.repacked([slice(1, 4), slice(5, 7), slice(8, 10)])
    assert own == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert before == [slice(0, 3), slice(3, 5), slice(6, 8)]  # 0 ... 2 hold the initial states


def test_blocks_are_as_long_as_they_may_be() -> None:
    assert packed.blocks(STEPS, limit=12) == [range(5)]
    assert packed.blocks(STEPS, limit=11) == [range(4), range(4, 5)]
    assert packed.blocks(STEPS, limit=6) == [range(1), range(1, 3), range(3, 5)]
    assert packed.blocks(STEPS, limit=1) == [range(t, t + 1) for t in range(5)]


def test_a_block_ends_where_the_places_do_not_follow_one_another() -> None:
    gap = [slice(0, 3), slice(3, 5), slice(6, 8), slice(8, 9)]
    follow = [slice(0, 3), slice(3, 5), slice(5, 7), slice(7, 8)]
    assert packed.blocks(follow, gap, limit=99) == packed.blocks(gap, follow, limit=99) == [range(2), range(2, 4)]
    assert packed.blocks(gap, follow, limit=4) == [range(1), range(1, 2), range(2, 4)]


def test_the_ends_of_sequences() -> None:
    assert packed.ends(STEPS) == [
        (slice(3, 4), slice(3, 4)),
        (slice(8, 10), slice(1, 3)),
        (slice(11, 12), slice(0, 1)),
    ]
