"""Dropout: the mask is a function of only (seed, step, row, unit)."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
from helpers import refuses

import minidl


def at(step: Any = 0, rows: Any = None) -> minidl.Packing:
    """The packing of a training step; of how the rows lie Dropout asks nothing."""
    return minidl.Packing([1], step=step, rows=rows)


def mask(p: float, shape: tuple[int, int], seed: int = 0, step: int = 0, rows: Any = None) -> np.ndarray:
    """1.0 where a unit is kept, 0.0 where it is dropped."""
    y, _ = minidl.Dropout(p, dtype="float64", rng=seed).forward(np.ones(shape), at(step, rows))
    return (y != 0).astype(np.float64)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_gradients(p: float) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5))
    report = minidl.gradcheck(minidl.Dropout(p, dtype="float64", rng=1), x, at(3), rng=0)
    assert len(report.checks) == 1 and report.max_error < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_what_is_kept_is_scaled_and_the_same_units_pass_the_gradient(p: float, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(30, 20)).astype(dtype)
    layer = minidl.Dropout(p, dtype=dtype, rng=4)
    y, cache = layer.forward(x, at(7))
    kept = y != 0
    assert 0 < kept.mean() < 1
    np.testing.assert_allclose(y[kept], x[kept] / (1 - p), rtol=1e-6)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(dtype)
    dx = layer.backward(dy, cache)
    assert ((dx != 0) == kept).all()
    np.testing.assert_allclose(dx[kept], dy[kept] / (1 - p), rtol=1e-6)
    assert y.dtype == dx.dtype == dtype


def test_inference_is_the_identity() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5))
    layer = minidl.Dropout(0.5, rng=0)
    assert layer(x) is x
    y, cache = minidl.Dropout(0.0).forward(x, at())
    assert (y == x).all() and (minidl.Dropout(0.0).backward(x, cache) == x).all()


def test_forward_writes_nothing_and_says_the_same_when_asked_again() -> None:
    layer = minidl.Dropout(0.5, rng=0)
    before, x = copy.deepcopy(vars(layer)), np.ones((6, 5))
    first = layer.forward(x, at(3))[0]
    layer.forward(x, at(4))
    assert (layer.forward(x, at(3))[0] == first).all()
    assert vars(layer) == before and (x == 1).all()


def test_a_part_of_a_batch_has_its_part_of_the_mask() -> None:
    whole = mask(0.5, (40, 9), step=2)
    for rows in (np.arange(10, 25), np.array([39, 0, 7, 7]), np.array([3], np.uint8), [5, 6]):
        assert (mask(0.5, (len(rows), 9), step=2, rows=rows) == whole[rows]).all()
    assert (mask(0.5, (40, 4), step=2) == whole[:, :4]).all(), "a unit's mask depends on the layer's width"
    assert (mask(0.5, (12, 9), step=2) == whole[:12]).all(), "a row's mask depends on the batch's size"


def test_threads_draw_the_same_mask() -> None:
    whole, found = mask(0.5, (60, 9), step=2), {}

    def part(start: int) -> None:
        found[start] = mask(0.5, (20, 9), step=2, rows=np.arange(start, start + 20))

    threads = [threading.Thread(target=part, args=(start,)) for start in (40, 0, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (np.concatenate([found[0], found[20], found[40]]) == whole).all()


def test_rows_far_beyond_32_bits_have_masks_of_their_own() -> None:
    rows = np.array([0, 1, 2**31, 2**32, 2**32 + 1, 2**40])
    masks = mask(0.5, (6, 64), rows=rows)
    assert len({row.tobytes() for row in masks}) == 6


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_the_share_that_is_kept(p: float) -> None:
    kept = np.concatenate([mask(p, (400, 250), seed, step) for seed in range(2) for step in range(2)])
    deviation = np.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 4 * deviation
    # No row and no unit is dropped more often than chance has it.
    for axis, count in ((0, kept.shape[0]), (1, kept.shape[1])):
        spread = kept.mean(axis=axis).std() / np.sqrt(p * (1 - p) / count)
        assert 0.85 < spread < 1.15, f"axis {axis}: {spread}"


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_steps_seeds_rows_and_units_are_independent(p: float) -> None:
    first = mask(p, (500, 200), seed=1, step=1)

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return abs(float(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1])) * np.sqrt(a.size)  # in deviations

    assert correlation(first, mask(p, (500, 200), seed=1, step=2)) < 4
    assert correlation(first, mask(p, (500, 200), seed=2, step=1)) < 4
    for lag in (1, 2, 8, 64):
        assert correlation(first[lag:], first[:-lag]) < 4, f"rows {lag} apart"
        assert correlation(first[:, lag:], first[:, :-lag]) < 4, f"units {lag} apart"
        assert correlation(first[lag:, lag:], first[:-lag, :-lag]) < 4, f"the diagonal, {lag} apart"
    # Of two rows and two units, the parity of the four is even as often as independence has it.
    parity = first[0::2, 0::2] + first[1::2, 0::2] + first[0::2, 1::2] + first[1::2, 1::2]
    even = (parity % 2 == 0).mean()
    expected = (1 + (1 - 2 * p) ** 4) / 2
    assert abs(even - expected) < 4 * np.sqrt(expected * (1 - expected) / parity.size)


def test_all_pairs_of_rows_agree_no_more_than_chance() -> None:
    signs = 2 * mask(0.5, (300, 256), step=9) - 1
    for lines in (signs, signs.T):
        products = lines @ lines.T
        off = products[~np.eye(len(lines), dtype=bool)] / np.sqrt(lines.shape[1])
        assert np.abs(off).max() < 5.5 and abs(off.std() - 1) < 0.05


def test_two_layers_of_one_generator_differ() -> None:
    rng, x = np.random.default_rng(0), np.ones((20, 20))
    first, second = minidl.Dropout(0.5, rng=rng), minidl.Dropout(0.5, rng=rng)
    assert (first.forward(x, at())[0] != second.forward(x, at())[0]).any()
    assert (minidl.Dropout(0.5).forward(x, at())[0] != minidl.Dropout(0.5).forward(x, at())[0]).any()


@pytest.mark.parametrize("p", [1.0, 1.5, -0.1, float("nan"), float("inf")])
def test_a_bad_p_is_refused(p: float) -> None:
    with refuses(ValueError, "p must be", "at least 0 and below 1", p):
        minidl.Dropout(p)


@pytest.mark.parametrize("p", [None, "half", [0.5]])
def test_a_p_that_is_no_number_is_refused(p: Any) -> None:
    with refuses(TypeError, "p must be a number", type(p).__name__):
        minidl.Dropout(p)


def test_a_p_just_below_one_works() -> None:
    assert not mask(1 - 1e-12, (5, 5)).any()


def test_the_constructors_other_arguments_are_checked() -> None:
    with refuses(TypeError, "dtype", "float16"):
        minidl.Dropout(0.5, dtype="float16")
    with refuses(TypeError, "rng", "str"):
        minidl.Dropout(0.5, rng="seed")  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones(4), ValueError, ["(N, D)", "(4,)"]),
        (np.ones((2, 3, 4)), ValueError, ["(N, D)", "(2, 3, 4)"]),
        (np.ones((0, 4)), ValueError, ["(N, D)", "(0, 4)"]),
        (np.ones((2, 4), int), TypeError, ["int64"]),
        ([[1.0, 2.0]], TypeError, ["list"]),
    ],
)
def test_a_bad_x_is_refused(x: Any, error: type[Exception], words: list[str], p: float) -> None:
    with refuses(error, "x ", *words):
        minidl.Dropout(p).forward(x, at())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([0, 1, 2], ["4 rows", "(3,)"]),
        ([[0, 1, 2, 3]], ["4 rows", "(1, 4)"]),
        ([0.0, 1.0, 2.0, 3.0], ["integer", "float64"]),
    ],
)
def test_bad_rows_are_refused(rows: Any, words: list[str]) -> None:
    with refuses(ValueError, "packing.rows", *words):
        minidl.Dropout(0.5).forward(np.ones((4, 2)), at(0, rows))


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_a_bad_step_is_refused(step: Any, error: type[Exception]) -> None:
    with refuses(error, "packing.step"):
        minidl.Dropout(0.5).forward(np.ones((4, 2)), at(step))


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (5,), (4, 6)])
def test_a_dy_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    layer = minidl.Dropout(0.5, rng=0)
    _, cache = layer.forward(np.ones((4, 5)), at())
    with refuses(ValueError, "dy", "(4, 5)", shape):
        layer.backward(np.ones(shape), cache)


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("packing", [None, minidl.Packing([9]), minidl.pack([np.ones(9)]), [9], 3])
def test_training_without_a_step_is_refused_and_not_the_same_mask_again(packing: Any, p: float) -> None:
    with refuses(TypeError, "packing.step", "call"):
        minidl.Dropout(p).forward(np.ones((9, 9)), packing)


def test_every_step_has_a_mask_of_its_own() -> None:
    assert len({mask(0.5, (9, 9), step=step).tobytes() for step in range(50)}) == 50


def test_a_packed_batch_says_the_step() -> None:
    x, layer = np.ones((5, 9)), minidl.Dropout(0.5, dtype="float64", rng=0)
    batch = minidl.pack([[1, 2, 3], [4, 5]])
    assert np.array_equal(layer.forward(x, batch._replace(step=2))[0], layer.forward(x, at(2))[0])
    assert layer(x, batch._replace(step=2)) is x


def test_the_seeds_of_many_layers_all_differ() -> None:
    rng = np.random.default_rng(0)
    assert len({minidl.Dropout(0.5, rng=rng).seed for _ in range(500)}) == 500


def test_a_p_of_zero_copies_nothing() -> None:
    x = np.ones((2, 3))
    assert minidl.Dropout(0.0, dtype="float64").forward(x, at())[0] is x
