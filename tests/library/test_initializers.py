"""Initializers: distributions, bounds and seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import refuses

import minidl
from minidl import initializers


def test_zeros() -> None:
    values = initializers.zeros((2, 3))
    assert values.shape == (2, 3) and not values.any()


def test_uniform_fills_its_range_evenly() -> None:
    values = initializers.uniform((100, 100), 0.25, rng=0)
    assert np.abs(values).max() <= 0.25 and np.abs(values).max() > 0.249
    counts, _ = np.histogram(values, bins=10, range=(-0.25, 0.25))
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


def test_normal_has_its_mean_and_deviation() -> None:
    values = initializers.normal((200, 100), std=0.3, rng=0)
    assert abs(values.mean()) < 4 * 0.3 / np.sqrt(values.size)
    assert abs(values.std() / 0.3 - 1) < 0.02
    assert abs((np.abs(values) < 0.3).mean() - 0.6827) < 0.015


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (1, 5)])
def test_xavier_uniform_keeps_within_its_bound_and_has_its_variance(shape: tuple[int, int]) -> None:
    bound = np.sqrt(6 / sum(shape))
    values = initializers.xavier_uniform(shape, rng=1)
    assert values.shape == shape and np.abs(values).max() <= bound
    if values.size > 1000:
        assert np.abs(values).max() > 0.999 * bound
        assert abs(values.var() * sum(shape) / 2 - 1) < 0.03  # Glorot: 2 / (fan_in + fan_out)


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (1, 1)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    values = initializers.orthogonal(shape, rng=2)
    assert values.shape == shape and values.flags.c_contiguous
    product = values @ values.T if shape[0] <= shape[1] else values.T @ values
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-12)


def test_orthogonal_is_uniform_over_rotations_and_reflections() -> None:
    """QR alone fixes signs: without the correction the first entry would have a mean far from zero."""
    rng = np.random.default_rng(3)
    drawn = np.array([initializers.orthogonal((3, 3), rng) for _ in range(1500)])
    means, squares = drawn.mean(axis=0), (drawn**2).mean(axis=0)
    assert np.abs(means).max() < 4.5 * np.sqrt(1 / 3 / 1500)
    assert np.abs(squares - 1 / 3).max() < 0.04
    assert 0.4 < (np.linalg.det(drawn) > 0).mean() < 0.6


DRAWN: dict[str, Callable[[Any], np.ndarray]] = {
    "uniform": lambda rng: initializers.uniform((3, 4), 1.0, rng),
    "normal": lambda rng: initializers.normal((3, 4), rng=rng),
    "xavier_uniform": lambda rng: initializers.xavier_uniform((3, 4), rng),
    "orthogonal": lambda rng: initializers.orthogonal((3, 4), rng),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_decides_and_a_generator_continues(name: str) -> None:
    draw = DRAWN[name]
    assert draw(5).tobytes() == draw(5).tobytes() == draw(np.random.default_rng(5)).tobytes()
    assert draw(5).tobytes() != draw(6).tobytes()
    assert draw(None).tobytes() != draw(None).tobytes()
    rng = np.random.default_rng(5)
    assert draw(rng).tobytes() != draw(rng).tobytes()
    assert draw(5).dtype == np.float64


@pytest.mark.parametrize("draw", [initializers.xavier_uniform, initializers.orthogonal])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_matrices_are_two_dimensional(draw: Any, shape: Any) -> None:
    with refuses(ValueError, "shape", "two dimensions", shape):
        draw(shape)


LAYERS: dict[str, Callable[..., Any]] = {
    "Embedding": lambda **keywords: minidl.Embedding(30, 40, **keywords),
    "Linear": lambda **keywords: minidl.Linear(25, 40, **keywords),
    "LSTM": lambda **keywords: minidl.LSTM(20, 10, **keywords),
    "LinearCrossEntropy": lambda **keywords: minidl.LinearCrossEntropy(25, 40, **keywords),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_start_from_their_seed_in_either_dtype(name: str) -> None:
    make = LAYERS[name]
    single, double = make(rng=3), make(rng=3, dtype="float64")
    for p, q, other in zip(single.parameters(), double.parameters(), make(rng=4).parameters(), strict=True):
        assert (p.data.dtype, q.data.dtype) == (np.float32, np.float64)
        assert (p.data == q.data.astype(np.float32)).all()
        assert (name == "LSTM" and "bias" in p.name) or (p.data != other.data).any()


def test_the_start_values_of_each_layer() -> None:
    embedding = minidl.Embedding(60, 50, rng=0).weight.data
    assert abs(embedding.mean()) < 0.08 and abs(embedding.std() - 1) < 0.05
    for layer in (minidl.Linear(25, 400, rng=0), minidl.LinearCrossEntropy(25, 400, rng=0)):
        for parameter in layer.parameters():
            assert 0.19 < np.abs(parameter.data).max() <= 0.2  # 1 / sqrt(25)
    lstm = minidl.LSTM(20, 10, rng=0)
    assert not lstm.bias.data.any()
    for weight in (lstm.weight_ih.data, lstm.weight_hh.data):
        bound = np.sqrt(6 / sum(weight.shape))
        assert 0.97 * bound < np.abs(weight).max() <= bound


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "int32", "nonsense"])
def test_layers_are_float32_or_float64(name: str, dtype: Any) -> None:
    with refuses(TypeError, "dtype", "'float32' or 'float64'", dtype):
        LAYERS[name](dtype=dtype)


@pytest.mark.parametrize(
    "make",
    [minidl.Embedding, minidl.Linear, minidl.LSTM, minidl.LinearCrossEntropy],
    ids=lambda make: make.__name__,
)
def test_layers_refuse_bad_sizes_and_seeds(make: Any) -> None:
    import inspect

    first, second = list(inspect.signature(make).parameters)[:2]
    for value in (0, -3):
        with refuses(ValueError, first, "at least 1", value):
            make(value, 2)
        with refuses(ValueError, second, "at least 1", value):
            make(2, value)
    for other in (2.0, "2", None):
        with refuses(TypeError, first, "int", type(other).__name__):
            make(other, 2)
        with refuses(TypeError, second, "int", type(other).__name__):
            make(2, other)
    with refuses(TypeError, "rng", "int seed", "float"):
        make(2, 2, rng=0.5)
    with refuses(ValueError, "rng", "at least 0"):
        make(2, 2, rng=-1)
    assert make(np.int64(2), np.int32(3), rng=np.int64(1)).parameters()


def test_true_is_no_size() -> None:
    with refuses(TypeError, "in_features", "int", "bool"):
        minidl.Linear(True, 2)
