"""minidl.backend: an array's library, and moving arrays between the host and a device."""

from __future__ import annotations

import types
from typing import Any

import device_double
import numpy as np
import pytest
from helpers import refuses

import minidl
from minidl import backend


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return device_double.install(monkeypatch)


def test_numpy_by_name_and_by_array() -> None:
    assert backend.get("numpy") is np
    assert backend.of(np.zeros(3)) is np
    assert backend.of(np.float32(1)) is np
    assert not backend.is_device(np.zeros(3))


@pytest.mark.parametrize("value", [[1.0], 1.0, None, "numpy"])
def test_what_is_no_array_has_no_library(value: object) -> None:
    with refuses(TypeError, "NumPy or CuPy array", type(value).__name__):
        backend.of(value)


CONSTRUCTORS = {
    "Embedding": lambda **keywords: minidl.Embedding(3, 2, **keywords),
    "Linear": lambda **keywords: minidl.Linear(3, 2, **keywords),
    "LSTM": lambda **keywords: minidl.LSTM(3, 2, **keywords),
    "Dropout": lambda **keywords: minidl.Dropout(0.5, **keywords),
    "LinearCrossEntropy": lambda **keywords: minidl.LinearCrossEntropy(3, 2, **keywords),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_an_unknown_backend_is_refused_by_every_layer(name: str) -> None:
    with refuses(ValueError, "backend", "'numpy' or 'cupy'", "'tpu'"):
        CONSTRUCTORS[name](backend="tpu")


def test_an_unknown_backend_is_refused_by_pack_and_to_backend() -> None:
    with refuses(ValueError, "backend", "'tpu'"):
        minidl.pack([[1, 2]], backend="tpu")
    with refuses(ValueError, "backend", "'tpu'"):
        minidl.to_backend(np.zeros(2), "tpu")


def test_cupy_by_name_and_by_array(cupy: Any) -> None:
    assert backend.get("cupy") is cupy
    array = minidl.to_backend(np.arange(3.0), "cupy")
    assert backend.is_device(array) and backend.of(array) is cupy
    assert not backend.is_device(np.zeros(3)) and backend.of(np.zeros(3)) is np
    back = minidl.to_host(array)
    assert type(back) is np.ndarray and back.tolist() == [0.0, 1.0, 2.0]
    assert minidl.to_backend(array, "numpy").tolist() == [0.0, 1.0, 2.0]
    assert minidl.to_backend(array, "cupy") is array


def test_to_host_gives_numpy_arrays_as_they_are() -> None:
    array = np.arange(3.0)
    assert minidl.to_host(array) is array
    assert minidl.to_backend(array, "numpy") is array
    assert minidl.to_host([1, 2]).tolist() == [1, 2]


def test_require_same_names_the_two_that_differ(cupy: Any) -> None:
    host, device = np.zeros(2), cupy.zeros(2)
    assert backend.require_same(a=host, b=host) is np
    assert backend.require_same(a=device, b=device) is cupy
    with refuses(TypeError, "b is a cupy array", "a is a numpy array", "minidl.to_host", "minidl.to_backend"):
        backend.require_same(a=host, b=device)


def test_generator_takes_a_seed_a_generator_or_none() -> None:
    assert backend.generator(7).random() == backend.generator(np.int64(7)).random()
    given = np.random.default_rng(1)
    assert backend.generator(given) is given
    assert backend.generator(None).random() != backend.generator(None).random()


@pytest.mark.parametrize("rng", [True, 1.5, "seed", np.random.RandomState(0)])
def test_generator_refuses_what_is_no_seed(rng: Any) -> None:
    with refuses(TypeError, "rng", "int seed", type(rng).__name__):
        backend.generator(rng)


def test_generator_refuses_a_negative_seed() -> None:
    with refuses(ValueError, "rng", "at least 0", "-1"):
        backend.generator(-1)
