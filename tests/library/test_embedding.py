"""Embedding: rows by id, and gradients that add up for repeated ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses

import minidl

IDS = np.array([3, 0, 3, 6, 3, 0, 1])


def embedding() -> Any:
    return filled(minidl.Embedding(7, 4, dtype="float64"))


def test_gradients() -> None:
    report = minidl.gradcheck(embedding(), IDS, rng=0)
    assert [check.name for check in report.checks] == ["weight"] and report.max_error < 1e-7


def test_the_gradient_is_the_sum_over_the_rows_of_an_id() -> None:
    layer = embedding()
    dy = np.random.default_rng(0).normal(size=(7, 4))
    y, cache = layer.forward(IDS)
    assert layer.backward(dy, cache) is None
    assert (y == layer.weight.data[IDS]).all()
    for row in range(7):
        np.testing.assert_allclose(layer.weight.grad[row], dy[row == IDS].sum(axis=0), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.uint64])
def test_any_integers_do(dtype: Any) -> None:
    layer = embedding()
    y, cache = layer.forward(IDS.astype(dtype))
    layer.backward(np.ones_like(y), cache)
    assert (y == layer.weight.data[IDS]).all()
    assert layer.weight.grad[:, 0].tolist() == [2, 1, 0, 3, 0, 0, 1]
    assert (layer(IDS.tolist()) == y).all()


def test_the_output_is_a_copy_and_inference_is_the_same() -> None:
    layer = embedding()
    before = vars(layer).copy()
    y, _ = layer.forward(IDS)
    assert vars(layer) == before
    assert (layer(IDS) == y).all() and y.dtype == np.float64
    y[...] = 100
    assert np.abs(layer.weight.data).max() < 100


def test_two_forwards_before_a_backward() -> None:
    layer = embedding()
    (_, first), (_, second) = layer.forward([1, 2]), layer.forward([5])
    layer.backward(np.full((2, 4), 10.0), first)
    layer.backward(np.ones((1, 4)), second)
    assert layer.weight.grad[:, 0].tolist() == [0, 10, 10, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([0, 7], IndexError, ["the id 7", "0 to 6"]),
        ([0, -1], IndexError, ["the id -1", "0 to 6"]),
        ([2**40], IndexError, ["the id", 2**40]),
        (np.array([0, 2**63], np.uint64), IndexError, ["the id"]),
        ([[0, 1]], ValueError, ["1-D", "(1, 2)"]),
        (3, ValueError, ["1-D", "()"]),
        ([], ValueError, ["empty batch"]),
        ([0.0, 1.0], TypeError, ["integers", "float64"]),
        ([True, False], TypeError, ["integers", "bool"]),
        (["a"], TypeError, ["integers"]),
        ([[0, 1], [2]], TypeError, ["integers", "list"]),
        (minidl.pack([[0, 1], [2]]), TypeError, ["integers", "PackedSequence"]),
    ],
)
def test_bad_ids_are_refused(ids: Any, error: type[Exception], words: list[str]) -> None:
    layer = embedding()
    with refuses(error, "ids", *words, keep=layer):
        layer.forward(ids)
    with refuses(error, "ids", *words, keep=layer):
        layer(ids)


@pytest.mark.parametrize(
    ("dy", "error", "words"),
    [
        (np.ones((6, 4)), ValueError, ["(7, 4)", "(6, 4)"]),
        (np.ones((1, 4)), ValueError, ["(7, 4)", "(1, 4)"]),
        (np.ones((7, 3)), ValueError, ["(7, 4)", "(7, 3)"]),
        (np.ones(4), ValueError, ["(7, 4)", "(4,)"]),
        (np.ones((7, 4), np.float32), TypeError, ["float64", "float32"]),
        (np.ones((7, 4), int), TypeError, ["float64", "int64"]),
        ([[1.0] * 4] * 7, TypeError, ["array", "list"]),
    ],
)
def test_a_bad_dy_is_refused(dy: Any, error: type[Exception], words: list[str]) -> None:
    layer = embedding()
    _, cache = layer.forward(IDS)
    with refuses(error, "dy", *words, keep=[layer, *cache]):
        layer.backward(dy, cache)
