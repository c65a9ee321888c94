"""sample: temperature, top-k, top-p, masks and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import refuses, snapshot
from hypothesis import given
from hypothesis import strategies as st
from small_model import cut_for

import minidl

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2]))
DRAWS = 20_000
CHI_SQUARE = {
    1: 10.83,
    2: 13.82,
    3: 16.27,
    4: 18.47,
}  # by degrees of freedom: passed once in a thousand by chance


def draw(logits: Any, count: int = DRAWS, seed: int = 0, **keywords: Any) -> np.ndarray:
    """`count` ids from one row of logits."""
    return minidl.sample(np.tile(np.asarray(logits, np.float64), (count, 1)), rng=seed, **keywords)


def assert_drawn_from(ids: np.ndarray, probabilities: Any) -> None:
    probabilities = np.asarray(probabilities) / np.sum(probabilities)
    counts = np.bincount(ids, minlength=len(probabilities))
    allowed = probabilities > 0
    assert not counts[~allowed].any(), counts
    expected = probabilities[allowed] * len(ids)
    statistic = ((counts[allowed] - expected) ** 2 / expected).sum()
    assert statistic < CHI_SQUARE[allowed.sum() - 1], (statistic, counts)


@pytest.mark.parametrize("seed", range(3))
def test_ids_come_as_often_as_softmax_has_it(seed: int) -> None:
    assert_drawn_from(draw(LOGITS, seed=seed), np.exp(LOGITS))
    assert_drawn_from(draw(LOGITS + 100, seed=seed), np.exp(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    assert_drawn_from(draw(LOGITS, temperature=temperature), np.exp(LOGITS / temperature))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_a_tiny_temperature_is_argmax(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (500, 40))
    logits[:, :5] = -np.inf
    assert (minidl.sample(logits, temperature, rng=1) == logits.argmax(axis=1)).all()
    assert (minidl.sample(logits.astype(np.float32), temperature, rng=1) == logits.argmax(axis=1)).all()


def test_a_huge_temperature_is_uniform() -> None:
    assert_drawn_from(draw(LOGITS, temperature=1e9), np.ones(5))


@pytest.mark.parametrize(("k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 2, 3, 4])])
def test_top_k_keeps_the_k_likeliest(k: int, kept: list[int]) -> None:
    ids = draw(LOGITS, top_k=k)
    assert sorted(set(ids.tolist())) == kept
    if k > 1:
        assert_drawn_from(ids, [p if i in kept else 0 for i, p in enumerate(np.exp(LOGITS))])


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-300, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.64, [1, 3]),
        (0.66, [1, 3, 4]),
        (0.84, [1, 3, 4]),
        (0.86, [1, 2, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, kept: list[int]) -> None:
    ids = draw(LOGITS, top_p=p)
    assert sorted(set(ids.tolist())) == kept
    if len(kept) > 1:
        assert_drawn_from(ids, [q if i in kept else 0 for i, q in enumerate(np.exp(LOGITS))])


def test_top_p_that_is_reached_exactly_needs_no_more() -> None:
    assert set(draw(np.log([0.5, 0.25, 0.25]), top_p=0.5).tolist()) == {0}


def test_top_p_counts_among_what_top_k_kept_and_after_temperature() -> None:
    # Of 0.4, 0.25, 0.2 (sum 0.85) the first two are 0.76 of the kept weight.
    assert sorted(set(draw(LOGITS, top_k=3, top_p=0.75).tolist())) == [1, 3]
    assert sorted(set(draw(LOGITS, top_p=0.75).tolist())) == [1, 3, 4]
    assert sorted(set(draw(LOGITS, top_p=0.75, temperature=0.25).tolist())) == [1]


def test_top_k_among_ties_keeps_k_of_them() -> None:
    for logits in (np.zeros(6), np.array([1.0, 0, 0, 0, 0, -9])):
        for k in (1, 2, 3, 4):
            kept = set(draw(logits, top_k=k, count=2000).tolist())
            assert len(kept) == k and (logits[0] == 0 or 0 in kept)


def test_top_p_among_ties_keeps_the_fewest() -> None:
    assert len(set(draw(np.zeros(4), top_p=0.5, count=2000).tolist())) == 2
    assert len(set(draw(np.zeros(4), top_p=0.51, count=2000).tolist())) == 3


def test_a_mask_of_minus_infinity_forbids() -> None:
    logits = LOGITS.copy()
    logits[[1, 4]] = -np.inf
    masked = np.exp(logits)
    assert_drawn_from(draw(logits), masked)
    assert_drawn_from(draw(logits, top_k=4), masked)
    assert_drawn_from(draw(logits, top_p=0.9999), masked)
    only = np.full(5, -np.inf)
    only[4] = -3.0
    assert set(draw(only, count=500).tolist()) == set(draw(only, count=500, top_k=3, top_p=0.5).tolist()) == {4}


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(1, 12),
    k=st.none() | st.integers(1, 14),
    p=st.none() | st.floats(0.01, 1.0),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_nothing_masked_or_cut_is_ever_drawn(
    seed: int, rows: int, classes: int, k: int | None, p: float | None, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, classes)).astype(dtype)
    logits[rng.random(logits.shape) < 0.4] = -np.inf
    logits[np.arange(rows), rng.integers(0, classes, rows)] = 1.0
    ids = minidl.sample(logits, 0.7, k, p, rng)
    assert ids.shape == (rows,) and ids.dtype.kind == "i"
    drawn = logits[np.arange(rows), ids]
    assert np.isfinite(drawn).all()
    if k is not None:
        assert ((logits > drawn[:, None]).sum(axis=1) < k).all()


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (1 - 2**-53, 3)])
def test_the_ends_of_the_draw_are_not_masked_ids(u: float, expected: int) -> None:
    """Of a uniform number, 0 is possible and 1 is not: the first and the last id must be allowed ones."""

    class Fixed(np.random.Generator):
        def random(self, *_: Any, **__: Any) -> Any:
            return np.full((1, 1), u)

    logits = np.array([[-np.inf, 0.3, 0.1, 0.7, -np.inf]])
    assert minidl.sample(logits, rng=Fixed(np.random.PCG64(0))).tolist() == [expected]


def test_rows_are_drawn_independently_from_their_own_logits() -> None:
    logits = np.tile([[0.0, -np.inf, 0.0], [-np.inf, 0.0, -np.inf]], (2000, 1))
    ids = minidl.sample(logits, rng=0)
    assert (ids[1::2] == 1).all() and set(ids[::2].tolist()) == {0, 2}
    first = ids[::2] == 0
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.1


def test_a_seed_decides_and_a_generator_continues() -> None:
    assert (draw(LOGITS, seed=1) == draw(LOGITS, seed=1)).all()
    assert (draw(LOGITS, seed=1) != draw(LOGITS, seed=2)).any()
    rng, logits = np.random.default_rng(1), np.tile(LOGITS, (50, 1))
    assert (minidl.sample(logits, rng=rng) != minidl.sample(logits, rng=rng)).any()
    assert (minidl.sample(logits) != minidl.sample(logits)).any()
    assert (minidl.sample(logits, rng=1) == draw(LOGITS, 50, seed=1)).all()


def test_logits_are_left_alone() -> None:
    logits = np.tile(LOGITS, (3, 1))
    before = snapshot(logits)
    minidl.sample(logits, 0.5, 2, 0.5, rng=0)
    assert snapshot(logits) == before


ROW = np.zeros((1, 5))


@pytest.mark.parametrize(
    ("logits", "keywords", "error", "words"),
    [
        (ROW, {"temperature": 0.0}, ValueError, ["temperature", "above 0", "0.0"]),
        (ROW, {"temperature": -1.0}, ValueError, ["temperature", "-1.0"]),
        (ROW, {"temperature": np.nan}, ValueError, ["temperature", "finite"]),
        (ROW, {"temperature": np.inf}, ValueError, ["temperature", "finite"]),
        (ROW, {"temperature": None}, TypeError, ["temperature", "NoneType"]),
        (ROW, {"top_k": 0}, ValueError, ["top_k", "at least 1", "0"]),
        (ROW, {"top_k": -1}, ValueError, ["top_k", "-1"]),
        (ROW, {"top_k": 2.0}, TypeError, ["top_k", "int", "float"]),
        (ROW, {"top_p": 0.0}, ValueError, ["top_p", "above 0", "0.0"]),
        (ROW, {"top_p": 1.1}, ValueError, ["top_p", "at most 1", "1.1"]),
        (ROW, {"top_p": -0.5}, ValueError, ["top_p", "-0.5"]),
        (ROW, {"top_p": np.nan}, ValueError, ["top_p"]),
        (ROW, {"top_p": "all"}, TypeError, ["top_p", "str"]),
        (ROW, {"rng": "seed"}, TypeError, ["rng", "str"]),
        (ROW[0], {}, ValueError, ["logits", "(N, V)", "(5,)"]),
        (ROW[:0], {}, ValueError, ["logits", "(0, 5)"]),
        (np.zeros((1, 0)), {}, ValueError, ["logits", "(1, 0)"]),
        (ROW.astype(int), {}, TypeError, ["logits", "float", "int64"]),
        (np.full((2, 3), -np.inf), {}, ValueError, ["logits", "without a finite"]),
        (np.array([[0.0, np.nan]]), {}, ValueError, ["logits", "NaN"]),
        (np.array([[0.0, np.inf]]), {}, ValueError, ["logits", "+inf"]),
        (np.array([[0.0, 1.0], [-np.inf, np.nan]]), {}, ValueError, ["logits", "NaN"]),
    ],
)
def test_bad_arguments_are_refused(logits: Any, keywords: Any, error: type[Exception], words: list[str]) -> None:
    with refuses(error, *words, keep=logits):
        minidl.sample(logits, **keywords)


def test_a_bad_argument_draws_nothing_from_the_generator() -> None:
    rng = np.random.default_rng(0)
    before = str(rng.bit_generator.state)
    with refuses(ValueError, "logits"):
        minidl.sample(np.full((2, 3), -np.inf), rng=rng)
    with refuses(ValueError, "top_k"):
        minidl.sample(ROW, top_k=0, rng=rng)
    assert str(rng.bit_generator.state) == before


def test_top_k_may_be_an_unsigned_integer_of_numpy() -> None:
    logits = np.tile(np.arange(5.0), (200, 1))
    assert set(minidl.sample(logits, top_k=np.uint64(2), rng=0)) == {3, 4}  # type: ignore[arg-type]


def test_top_k_of_many_ids_keeps_the_likeliest() -> None:
    logits = np.random.default_rng(0).permutation(300) / 100
    assert set(draw(logits, 500, top_k=5)) == set(np.argsort(logits)[-5:])


def test_top_p_among_many_ties_keeps_the_first() -> None:
    logits = np.tile([-50.0, 0.0], 300)
    assert set(draw(logits, 500, top_p=0.0332)) == set(range(1, 21, 2))


def test_rows_that_are_drawn_on_two_threads_are_those_of_one(as_many_threads_afterwards: None) -> None:
    logits = np.random.default_rng(0).normal(size=(7, 9))
    with cut_for(1):
        expected = minidl.sample(logits, rng=0)
    with cut_for(2):
        assert minidl.sample(logits, rng=0).tolist() == expected.tolist()
