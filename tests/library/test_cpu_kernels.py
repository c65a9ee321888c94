"""The fast NumPy kernels, each checked against a plain implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import relative_error, snapshot
from hypothesis import given
from hypothesis import strategies as st
from small_model import number_of_threads

import minidl
from minidl.kernels.cpu import cuts, dropout, optimizers, softmax
from minidl.kernels.cpu.embedding import add_rows


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_add_rows_adds_repeated_ids_and_leaves_the_others(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    ids, rows = np.array([4, 1, 4, 4, 0, 1], dtype), rng.normal(size=(6, 3))
    start = rng.normal(size=(6, 3))
    target, expected = start.copy(), start.copy()
    add_rows(target, ids, rows)
    for place, row in zip(ids, rows, strict=True):
        expected[place] += row
    np.testing.assert_allclose(target, expected, rtol=1e-14)
    assert target[[2, 3, 5]].tobytes() == start[[2, 3, 5]].tobytes()


IDS = {
    "all equal": lambda rng, rows: np.full(rows, 3),
    "all different": lambda rng, rows: rng.permutation(rows),
    "any": lambda rng, rows: rng.integers(0, rows, rows),
    "as words are": lambda rng, rows: np.minimum(rng.zipf(1.2, rows), rows) - 1,
    "in order": lambda rng, rows: np.sort(rng.integers(0, min(20, rows), rows)),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("rows", [1, 2, 37, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("float64", 1e-12)])
def test_add_rows_equals_numpys_own(ids: Any, rows: int, dtype: str, tolerance: float) -> None:
    rng = np.random.default_rng(rows)
    drawn, values = ids(rng, rows), rng.normal(size=(7, rows)).astype(dtype).T
    target = rng.normal(size=(rows + 4, 7)).astype(dtype)
    expected, before = target.astype(np.float64), target.copy()
    np.add.at(expected, drawn, values.astype(np.float64))
    kept = drawn.tobytes(), values.tobytes()
    add_rows(target, drawn, values)
    np.testing.assert_allclose(target, expected, rtol=tolerance, atol=tolerance)
    untouched = np.setdiff1d(np.arange(rows + 4), drawn)
    assert target[untouched].tobytes() == before[untouched].tobytes()
    assert (drawn.tobytes(), values.tobytes()) == kept


@given(ids=st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_add_rows_adds_however_often_an_id_comes(ids: list[int]) -> None:
    rng = np.random.default_rng(len(ids))
    target, rows = rng.normal(size=(7, 3)), rng.normal(size=(len(ids), 3))
    expected = target.copy()
    np.add.at(expected, np.array(ids), rows)
    add_rows(target, np.array(ids), rows)
    np.testing.assert_allclose(target, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("block", [1, 5 * 8, 10**6])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["usual", "e^z would overflow"])
def test_the_loss_in_blocks_is_the_textbooks(scale: float, n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(23, 4)), rng.integers(0, 7, 23)
    weight = minidl.Parameter(scale * rng.normal(size=(7, 4)), "weight")
    bias = minidl.Parameter(rng.normal(size=7), "bias")
    loss, dlogits = minidl.softmax_cross_entropy(x @ weight.data.T + bias.data, targets)
    before = snapshot(x, targets, weight.data, bias.data)
    monkeypatch.setattr(cuts, "LOGITS_BYTES", block * 7)
    for name in ("PRODUCT", "NUMBERS"):
        monkeypatch.setattr(cuts, name, 1)
    with number_of_threads(n):
        alone = softmax.loss(x, weight.data, bias.data, targets, 23)
        found, dx = softmax.forward_backward(x, targets, 23, weight, bias)
    assert snapshot(x, targets, weight.data, bias.data) == before
    np.testing.assert_allclose([alone, found], loss, rtol=1e-13)
    assert relative_error(dx, dlogits @ weight.data) < 1e-12
    assert relative_error(weight.grad, dlogits.T @ x) < 1e-12 and relative_error(bias.grad, dlogits.sum(axis=0)) < 1e-12


def test_logits_exist_in_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    exponentials = softmax._exponentials

    def watched(x1: Any, with_bias: Any, targets: Any) -> Any:
        seen.append(len(x1))
        return exponentials(x1, with_bias, targets)

    monkeypatch.setattr(softmax, "_exponentials", watched)
    monkeypatch.setattr(cuts, "LOGITS_BYTES", 5 * 7 * 8)
    head = minidl.LinearCrossEntropy(4, 7, dtype="float64")
    with number_of_threads(1):
        head.forward_backward(np.ones((23, 4)), np.zeros(23, int))
    assert sum(seen) == 23 and max(seen) <= 5 and len(seen) == 5


@pytest.mark.parametrize("rows", [None, [0, 7, 7, 2**40]])
def test_dropouts_mask_is_that_of_each_row_and_unit(rows: Any) -> None:
    places = np.arange(4) if rows is None else np.array(rows)
    y, scale = dropout.forward(np.full((4, 50), 3.0), 5, 9, None if rows is None else places, 0.25)
    assert set(np.unique(scale)) <= {0.0, 1 / 0.75} and np.array_equal(y, 3 * scale) and 0.6 < (scale > 0).mean() < 0.9
    for row, place in enumerate(places):
        for unit in (1, 20, 50):
            alone = dropout.forward(np.ones((1, unit)), 5, 9, np.array([place]), 0.25)[1]
            assert np.array_equal(alone[0], scale[row, :unit])


def mixed(bits: int) -> int:
    """The hash "lowbias32" in Python's integers."""
    bits = (bits ^ bits >> 16) * 0x7FEB352D % 2**32
    bits = (bits ^ bits >> 15) * 0x846CA68B % 2**32
    return bits ^ bits >> 16


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("block", [1, 14, 10**6])
def test_dropouts_mask_is_the_hash_of_its_place_however_it_is_cut(
    block: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "BLOCK", block)
    monkeypatch.setattr(cuts, "NUMBERS", 1)
    places, x = [0, 3, 2**33 + 5, 3, 8], np.arange(35.0).reshape(5, 7)
    with number_of_threads(n):
        y, scale = dropout.forward(x, 5, 9, np.array(places), 0.25)
    salt = [int(word) for word in np.random.SeedSequence([5, 9]).generate_state(4)]
    rows = [mixed(mixed(place % 2**32 ^ salt[0]) ^ place >> 32 ^ salt[1]) for place in places]
    units = [mixed(mixed(unit ^ salt[2]) ^ salt[3]) for unit in range(7)]
    kept = [[mixed(row ^ unit) >= 0.25 * 2**32 for unit in units] for row in rows]
    np.testing.assert_array_equal(scale, np.array(kept) / 0.75)
    np.testing.assert_array_equal(y, x * scale)


@pytest.mark.parametrize("block", [1, 7, 16, 10**6])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("size", [1, 16, 100])
def test_an_update_in_blocks_is_that_of_the_whole(
    size: int, n: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(size)
    data, grad, total = (rng.normal(size=size).astype(np.float32) for _ in range(3))
    lengths: list[int] = []

    def update(data: np.ndarray, grad: np.ndarray, total: np.ndarray) -> None:
        lengths.append(len(data))
        total += grad * grad
        data -= np.float32(0.1) * grad / (np.sqrt(abs(total)) + np.float32(1))

    expected = [array.copy() for array in (data, grad, total)]
    update(*expected)
    del lengths[:]
    monkeypatch.setattr(cuts, "BLOCK", block)
    monkeypatch.setattr(cuts, "NUMBERS", 1)
    with number_of_threads(n):
        optimizers.apply(update, data, grad, total)
    assert snapshot(data, grad, total) == snapshot(expected)
    assert sum(lengths) == size and max(lengths) <= max(1, block) and len(lengths) >= min(n, size)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_norm_is_numpys_own_and_does_not_overflow(scale: float) -> None:
    rng = np.random.default_rng(0)
    grads = [(scale * rng.normal(size=size)).astype(np.float32) for size in (1, 40, 7)]
    whole = np.concatenate(grads).astype(np.float64)
    if scale >= 1:
        assert optimizers.norm(grads) == pytest.approx(np.linalg.norm(whole), rel=1e-6)
    squares = [optimizers.square(grad) for grad in grads]
    assert all(np.isinf(square) == (scale > 1) for square in squares)
    if scale == 1:
        assert squares == pytest.approx([float((grad.astype(np.float64) ** 2).sum()) for grad in grads], rel=1e-6)
