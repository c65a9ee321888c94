"""minidl/kernels/cpu/lstm.py, each function checked against a plain loop or formula. A wrong cut may still train."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import relative_error, reused_memory, snapshot
from hypothesis import given
from hypothesis import strategies as st
from small_model import cut_for

from minidl.kernels.cpu import cuts, lstm, threads

SIZES = [4, 3, 3, 1, 1]  # lengths 5, 3, 3, 1
RAGGED = {"ragged": SIZES, "rectangular": [3, 3], "one sequence": [1] * 4, "one step": [5], "one row": [1]}
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
every_size = pytest.mark.parametrize("sizes", RAGGED.values(), ids=RAGGED.keys())
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
any_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=9).map(lambda found: sorted(found, reverse=True))
pytestmark = pytest.mark.usefixtures("as_many_threads_afterwards")


def sizes_of(lengths: Sequence[int]) -> list[int]:
    return [sum(length > t for length in lengths) for t in range(max(lengths))]


def places(sizes: list[int]) -> list[tuple[int, int]]:
    """(time step, sequence) of each packed row."""
    return [(t, b) for t, n in enumerate(sizes) for b in range(n)]


def place_of(sizes: list[int], t: int, b: int) -> int:
    """Where the state of sequence b after step t lies; that from before the first step is after step -1."""
    return b if t < 0 else sizes[0] + places(sizes).index((t, b))


def normal(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


# Shards.


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
    found = [shard.sequences for shard in lstm.shards(sizes, parts)]
    assert [(part.start, part.stop) for part in found] == list(pairwise(cuts))


def test_the_rows_and_sizes_of_shards_by_hand() -> None:
    first, second, third = lstm.shards(SIZES, 3)
    assert list(first.rows) == [0, 4, 7, 10, 11] and first.sizes == [1, 1, 1, 1, 1]
    assert list(second.rows) == [1, 5, 8] and second.sizes == [1, 1, 1]
    assert list(third.rows) == [2, 3, 6, 9] and third.sizes == [2, 1, 1]
    (whole,) = lstm.shards(SIZES, 1)
    assert whole == (slice(0, 4), slice(None), SIZES), "the rows of all sequences are not copied"


@given(lengths=any_lengths, parts=st.integers(1, 12))
def test_every_row_is_one_shards_and_a_shard_is_packed(lengths: list[int], parts: int) -> None:
    sizes = sizes_of(lengths)
    at, seen = places(sizes), []
    for shard in lstm.shards(sizes, parts):
        rows = np.arange(len(at))[shard.rows].tolist()
        mine = lengths[shard.sequences]
        assert mine and shard.sizes == sizes_of(mine) and all(type(n) is int for n in shard.sizes)
        assert [at[row] for row in rows] == [(t, b + shard.sequences.start) for t, b in places(shard.sizes)]
        seen += rows
    assert sorted(seen) == list(range(len(at)))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@every_dtype
@every_size
def test_each_shard_walks_with_its_own_rows_and_states(sizes: list[int], dtype: str, n: int) -> None:
    """In both directions; a state's rows beyond the batch are nobody's."""
    rows, alive, at = sum(sizes), sizes[0], places(sizes)
    x, h, c = normal(rows, 2, dtype=dtype), normal(alive + 2, 3, dtype=dtype), normal(alive + 2, 3, dtype=dtype, seed=1)
    states = (h.copy(), c.copy())

    def walk(x: np.ndarray, sizes: list[int], h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, Any]:
        assert x.flags.c_contiguous and len(x) == sum(sizes) and len(h) == len(c) == sizes[0]
        sequence = [b for _, b in places(sizes)]
        y = x.sum(axis=1, keepdims=True) * h[sequence] + c[sequence]
        h *= 2
        c -= 1
        return y, (x, sizes)

    def back(dy: Any, mine: Any, left: Any, block: Any, h: Any, c: Any) -> Any:
        whole, sizes = left
        assert snapshot(mine) == snapshot(whole[block.rows]) and len(dy) == len(mine)
        c -= 1  # once a block
        sequence = [b for _, b in places(sizes)][block.rows]
        return mine * dy.sum(axis=1, keepdims=True) + h[sequence].sum(axis=1, keepdims=True) / 2, np.array([len(dy)])

    with cut_for(n), reused_memory():
        shards = lstm.shards(sizes, n)
        y, walks = lstm.in_shards(walk, x, sizes, states)
        assert snapshot([shard for shard, _ in walks]) == snapshot(shards) and len(shards) >= min(n, alive, 2)
        assert snapshot([rows for _, (rows, _) in walks]) == snapshot([x[shard.rows] for shard in shards])
        dx, sums = lstm.in_shards_back(back, y, x, walks, states)
        assert [total.tolist() for total in sums] == [[sum(shard.sizes)] for shard in shards], "in the shards' order"
        blocks = [len(lstm.blocks(shard.sizes, 4 * 3)) for shard in shards]
        y, dx = y.copy(), dx.copy()
    sequence = [b for _, b in at]
    expected = x.sum(axis=1, keepdims=True) * h[sequence] + c[sequence]
    again = x * expected.sum(axis=1, keepdims=True) + h[sequence].sum(axis=1, keepdims=True)
    later = np.repeat(blocks, [shard.sequences.stop - shard.sequences.start for shard in shards])[:, None]
    assert y.dtype == dx.dtype == dtype
    assert relative_error(y, expected) < TOLERANCE[dtype] and relative_error(dx, again) < 10 * TOLERANCE[dtype]
    assert (states[0][:alive] == 2 * h[:alive]).all() and snapshot(states[0][alive:]) == snapshot(h[alive:])
    assert relative_error(states[1][:alive], c[:alive] - 1 - later) < TOLERANCE[dtype]
    assert snapshot(states[1][alive:]) == snapshot(c[alive:])


@pytest.mark.parametrize(("units", "expected"), [(2**11 - 1, 1), (2**11, 2), (2**12, 2)])
def test_a_mean_time_step_of_enough_numbers_is_worth_a_thread(units: int, expected: int) -> None:
    """4 gates x 4 sequences x units, over several steps."""
    assert cuts.STEP == 2**14
    threads.set_num_threads(2)
    states = (np.zeros((4, units), "float32"), np.zeros((4, units), "float32"))
    _, walks = lstm.in_shards(
        lambda x, sizes, h, c: (h[[b for _, b in places(sizes)]], 0), normal(12, 1), [4] * 3, states
    )
    assert len(walks) == expected


# Time steps, and where the states lie.


def test_the_steps_by_hand() -> None:
    assert lstm.steps(SIZES) == [
        (slice(0, 4), slice(0, 4), slice(4, 8)),
        (slice(4, 7), slice(4, 7), slice(8, 11)),
        (slice(7, 10), slice(8, 11), slice(11, 14)),
        (slice(10, 11), slice(11, 12), slice(14, 15)),
        (slice(11, 12), slice(14, 15), slice(15, 16)),
    ]
    assert lstm.last(SIZES).tolist() == [15, 12, 13, 7]


def test_the_blocks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "BACK", 70)
    first, second = lstm.blocks(SIZES, 10)
    assert first.rows == slice(0, 7) and first.steps == [slice(0, 4), slice(4, 7)] and first.after == slice(4, 11)
    assert second.rows == slice(7, 12) and second.steps == [slice(0, 3), slice(3, 4), slice(4, 5)]
    assert first.before.tolist() == [0, 1, 2, 3, 4, 5, 6] and second.before.tolist() == [8, 9, 10, 11, 14]
    assert second.after == slice(11, 16)


@given(lengths=any_lengths, limit=st.integers(1, 200))
def test_blocks_are_all_time_steps_and_no_larger_than_asked(lengths: list[int], limit: int) -> None:
    sizes = sizes_of(lengths)
    at = places(sizes)
    with mock.patch.object(cuts, "BACK", limit):
        found = lstm.blocks(sizes, 5)
    assert [row for block in found for row in range(block.rows.start, block.rows.stop)] == list(range(len(at)))
    steps = [at[block.rows][rows] for block in found for rows in block.steps]
    assert steps == [[(t, b) for b in range(n)] for t, n in enumerate(sizes)]
    for block in found:
        rows = block.rows.stop - block.rows.start
        assert rows * 5 <= limit or len(block.steps) == 1
        assert block.before.tolist() == [place_of(sizes, t - 1, b) for t, b in at[block.rows]]
        assert list(range(block.after.start, block.after.stop)) == [place_of(sizes, t, b) for t, b in at[block.rows]]


@given(lengths=any_lengths)
def test_the_places_of_the_rows_and_of_the_states_before_and_after_them(lengths: list[int]) -> None:
    sizes = sizes_of(lengths)
    at = places(sizes)
    found = lstm.steps(sizes)
    assert len(found) == len(sizes)
    for t, (rows, before, after) in enumerate(found):
        mine = range(sizes[t])
        assert at[rows] == [(t, b) for b in mine]
        assert list(range(before.start, before.stop)) == [place_of(sizes, t - 1, b) for b in mine]
        assert list(range(after.start, after.stop)) == [place_of(sizes, t, b) for b in mine]
    assert lstm.last(sizes).tolist() == [place_of(sizes, length - 1, b) for b, length in enumerate(lengths)]


@every_dtype
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_states_array_begins_with_those_from_before_the_first_step(rows: int, dtype: str) -> None:
    first = normal(3, 2, dtype=dtype)
    found = lstm.begun(first, rows)
    assert found.shape == (3 + rows, 2) and found.dtype == dtype and snapshot(found[:3]) == snapshot(first)
    assert not np.shares_memory(found, first)


@every_dtype
def test_states_are_copies_or_zeros(dtype: str) -> None:
    like = normal(1, 1, dtype=dtype)
    for part in lstm.states("state", None, 3, 2, like):
        assert part.shape == (3, 2) and part.dtype == dtype and not part.any()
    h, c = lstm.states("state", None, 3, 2, like)
    assert not np.shares_memory(h, c), "each is written to"
    given_state = (normal(5, 2, dtype=dtype), normal(5, 2, dtype=dtype, seed=1))
    found = lstm.states("state", given_state, 3, 2, like)
    assert snapshot(found) == snapshot(given_state), "rows beyond the batch are kept"
    assert not any(np.shares_memory(a, b) for a in found for b in given_state)
    same = normal(3, 2, dtype=dtype)
    h, c = lstm.states("state", (same, same), 3, 2, like, exact=True)
    assert not np.shares_memory(h, c)
    with pytest.raises(ValueError, match=r"^dstate h must have shape \(3, 2\), got \(5, 2\)$"):
        lstm.states("dstate", given_state, 3, 2, like, exact=True)
    with pytest.raises(ValueError, match=r"^state must have at least the 6 rows"):
        lstm.states("state", given_state, 6, 2, like)


# Gates and products.


@every_dtype
@pytest.mark.parametrize("rows", [1, 5])
def test_squash_of_what_is_halved_is_three_sigmoids_and_a_tanh(rows: int, dtype: str) -> None:
    z = 3 * normal(rows, 4 * 3, dtype=dtype)
    kept = z.copy()
    halved = lstm.halved(z)
    assert halved.shape == (4, rows, 3) and halved.dtype == dtype
    found = lstm.squash(halved)
    assert found is halved and found.dtype == dtype and snapshot(z) == snapshot(kept)
    for gate, (name, part) in enumerate(zip("ifgo", found, strict=True)):
        wanted = z[:, 3 * gate : 3 * gate + 3].astype("float64")
        assert relative_error(part, np.tanh(wanted) if name == "g" else sigmoid(wanted)) < TOLERANCE[dtype], name


@every_dtype
def test_squash_goes_to_the_ends_without_overflow(dtype: str) -> None:
    ends = np.array([[[-np.inf, -1e4, 0.0, 1e4, np.inf]]] * 4, dtype)
    with np.errstate(all="raise"):
        i, f, g, o = lstm.squash(ends)
    for gate in (i, f, o):
        assert gate.tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    assert g.tolist() == [[-1.0, -1.0, 0.0, 1.0, 1.0]]


@every_dtype
@pytest.mark.parametrize(("width", "hidden"), [(1, 1), (3, 2), (2, 5)])
def test_turned_weights(width: int, hidden: int, dtype: str) -> None:
    weight = normal(4 * hidden, width, dtype=dtype)
    found = lstm.turned(weight)
    assert found.shape == (4, width, hidden) and found.dtype == dtype and not np.shares_memory(found, weight)
    for gate, half in enumerate((0.5, 0.5, 1, 0.5)):
        for d in range(width):
            for k in range(hidden):
                assert found[gate, d, k] == half * weight[gate * hidden + k, d]


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 1, 1), (2, 3, 4), (12, 3, 2), (7, 5, 1)])
def test_input_products_are_those_of_the_formula(rows: int, width: int, hidden: int, n: int, dtype: str) -> None:
    x, weight = normal(rows, width, dtype=dtype), normal(4 * hidden, width, dtype=dtype)
    bias = normal(4 * hidden, dtype=dtype)
    kept = snapshot(x, weight, bias)
    with cut_for(n), reused_memory():
        found = lstm.input_products(x, weight, bias).copy()
    assert found.shape == (4, rows, hidden) and found.dtype == dtype and snapshot(x, weight, bias) == kept
    expected = lstm.halved(x.astype("float64") @ weight.astype("float64").T + bias)
    assert relative_error(found, expected) < 5 * TOLERANCE[dtype]


@pytest.mark.parametrize("block", [1, 5, 12, 100, 10**6])
@pytest.mark.parametrize("n", [1, 3])
def test_blocks_go_over_all_rows_once(n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, lengths = np.zeros(20, int), []

    def task(rows: slice) -> None:
        seen[rows] += 1
        lengths.append(rows.stop - rows.start)

    with cut_for(n):
        monkeypatch.setattr(cuts, "BLOCK", block)
        lstm.in_blocks(task, 20, 6)
    assert (
        (seen == 1).all() and max(lengths) <= max(1, block // 6) and len(lengths) == max(n, min(20, -(-120 // block)))
    )


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@every_size
@pytest.mark.parametrize(("width", "hidden"), [(3, 2), (1, 4), (5, 1)])
def test_products_back_are_those_of_a_loop_over_rows(
    width: int, hidden: int, sizes: list[int], n: int, dtype: str
) -> None:
    rows, first, exact = sum(sizes), sizes[0], "float64"
    dz, x = normal(4, rows, hidden, dtype=dtype), normal(rows, width, dtype=dtype)
    h, weight = normal(first + rows, hidden, dtype=dtype), normal(4 * hidden, width, dtype=dtype)
    kept, before = snapshot(dz, x, h, weight), [place_of(sizes, t - 1, b) for t, b in places(sizes)]
    with cut_for(n), reused_memory():
        dx, dweights = (part.copy() for part in lstm.products_back(dz, x, h[before], weight))
    assert snapshot(dz, x, h, weight) == kept and dx.dtype == dweights.dtype == dtype
    by_x, by_ih = np.zeros((rows, width)), np.zeros((4 * hidden, width))
    by_hh, by_bias = np.zeros((4 * hidden, hidden)), np.zeros(4 * hidden)
    for row, (t, b) in enumerate(places(sizes)):
        dz_t = dz[:, row].reshape(-1).astype(exact)  # (4H,), as the weights lie
        by_x[row] = dz_t @ weight
        by_ih += np.outer(dz_t, x[row])
        by_hh += np.outer(dz_t, h[place_of(sizes, t - 1, b)])
        by_bias += dz_t
    assert relative_error(dx, by_x) < 5 * TOLERANCE[dtype]
    got = [np.ones_like(part, dtype) for part in (by_ih, by_hh, by_bias)]
    lstm.add_to(*got, [dweights, 2 * dweights])
    for found, part in zip(got, (by_ih, by_hh, by_bias), strict=True):
        assert found.dtype == dtype and relative_error(found, 1 + 3 * part) < 10 * TOLERANCE[dtype]
