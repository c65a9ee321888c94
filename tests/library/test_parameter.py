"""Parameter, and the flat buffer that a model's parameters share."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses, snapshot

import minidl
from minidl.kernels.cpu.workspace import ALIGNMENT
from minidl.parameter import flat_views

SHAPES = [(3, 5), (7,), (1, 1), (4, 4), (16,)]


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: str = "float64") -> list[minidl.Parameter]:
    rng = np.random.default_rng(3)
    params = [minidl.Parameter(rng.normal(size=shape).astype(dtype), f"p{i}") for i, shape in enumerate(shapes)]
    for parameter in params:
        parameter.grad[...] = rng.normal(size=parameter.grad.shape)
    return params


def addresses(params: Sequence[minidl.Parameter]) -> list[tuple[int, int]]:
    return [(p.data.ctypes.data, p.grad.ctypes.data) for p in params]


def test_a_parameter_starts_with_a_gradient_of_zeros_like_it() -> None:
    parameter = minidl.Parameter(np.ones((2, 3), np.float32), "weight")
    assert parameter.grad.shape == (2, 3) and parameter.grad.dtype == np.float32
    assert not parameter.grad.any()
    assert "weight" in repr(parameter) and "(2, 3)" in repr(parameter) and "float32" in repr(parameter)


@pytest.mark.parametrize("attribute", ["data", "grad"])
def test_rebinding_is_refused_and_writing_in_place_is_not(attribute: str) -> None:
    parameter = parameters()[0]
    with refuses(AttributeError, f"p0.{attribute}", "in place", f".{attribute}[...] = values", keep=parameter):
        setattr(parameter, attribute, np.zeros((3, 5)))
    with refuses(AttributeError, f"p0.{attribute}", keep=parameter):
        setattr(parameter, attribute, getattr(parameter, attribute).copy())
    place = getattr(parameter, attribute)
    start = place.copy()
    place[...] = 4.0
    assert (getattr(parameter, attribute) == 4.0).all()
    place[...] = start
    exec(f"parameter.{attribute} *= 2", {"parameter": parameter})
    assert getattr(parameter, attribute) is place and (place == 2 * start).all()


@pytest.mark.parametrize("data", [[1.0, 2.0], 1.5, None, "weights"])
def test_a_parameter_is_made_of_an_array(data: Any) -> None:
    with refuses(TypeError, "array", type(data).__name__):
        minidl.Parameter(data)


def test_a_parameter_of_integers_is_refused() -> None:
    with refuses(TypeError, "float", "int64"):
        minidl.Parameter(np.arange(3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_flatten_puts_values_and_gradients_side_by_side(dtype: str) -> None:
    params = parameters(dtype=dtype)
    before = snapshot(params)
    minidl.flatten(params)
    assert snapshot(params) == before, "flatten changed a value"
    for column in range(2):  # the values, the gradients
        places = [pair[column] for pair in addresses(params)]
        assert all(place % ALIGNMENT == 0 for place in places)
        for parameter, place, following in zip(params, places, places[1:], strict=False):
            assert following - place == -(-parameter.data.nbytes // ALIGNMENT) * ALIGNMENT
    for attribute in ("data", "grad"):
        views = [getattr(parameter, attribute) for parameter in params]
        assert all(view.flags.c_contiguous and view.flags.writeable for view in views)
        assert all(np.shares_memory(view, views[0].base) for view in views)
    assert len(flat_views(params)) == 1


def test_views_of_the_buffer_and_the_parameters_are_the_same_memory() -> None:
    params = parameters()
    minidl.flatten(params)
    (flat,) = flat_views(params)
    flat.data[...] = 0
    flat.grad[...] = 5
    assert all((p.data == 0).all() and (p.grad == 5).all() for p in params)
    params[1].data[...] = 9
    assert (flat.data == 9).sum() == params[1].data.size


def test_flattening_twice_moves_nothing() -> None:
    params = parameters()
    minidl.flatten(params)
    places = addresses(params)
    minidl.flatten(params)
    minidl.SGD(params, lr=1.0)
    minidl.Adam(params)
    minidl.flatten(params[1:3])  # a run of neighbours lies side by side already
    assert addresses(params) == places
    assert len(flat_views(params)) == 1


def test_another_order_moves_and_keeps_the_values() -> None:
    params = parameters()
    minidl.flatten(params)
    before = snapshot(params)
    minidl.flatten(params[::-1])
    assert len(flat_views(params[::-1])) == 1 and len(flat_views(params)) == len(params)
    assert snapshot(params) == before


def test_arrays_that_are_not_contiguous_are_flattened_right() -> None:
    parameter = minidl.Parameter(np.arange(6.0).reshape(2, 3).T)
    parameter.grad[...] = np.arange(6.0).reshape(3, 2)
    minidl.flatten([parameter])
    assert parameter.data.tolist() == [[0, 3], [1, 4], [2, 5]] and parameter.data.flags.c_contiguous
    assert parameter.grad.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_model_with_a_part_in_another_optimizer_stays_right() -> None:
    """The second optimizer takes a subset with a gap; each updates what it holds, and only that."""
    params = parameters()
    first = minidl.SGD(params, lr=0.5)
    second = minidl.SGD([params[0], params[3]], lr=0.25)
    expected = [p.data - 0.5 * p.grad for p in params]
    first.step()
    for index in (0, 3):
        expected[index] = expected[index] - 0.25 * params[index].grad
    second.step()
    for parameter, values in zip(params, expected, strict=True):
        np.testing.assert_allclose(parameter.data, values, rtol=1e-14)
    second.zero_grad()
    assert [bool(p.grad.any()) for p in params] == [False, True, True, False, True]
    first.zero_grad()
    assert not any(p.grad.any() for p in params)


def test_the_gaps_between_parameters_stay_zero() -> None:
    params = parameters(dtype="float32")
    optimizers = [minidl.Adam(params), minidl.AdaGrad(params), minidl.Adadelta(params)]
    optimizers += [minidl.SGD(params, lr=0.1, momentum=0.9)]
    for optimizer in optimizers:
        optimizer.step()
        minidl.clip_grad_norm(params, 0.1)
    (flat,) = flat_views(params)
    covered = np.zeros(flat.data.size, bool)
    for parameter in params:
        start = (parameter.data.ctypes.data - flat.data.ctypes.data) // parameter.data.itemsize
        covered[start : start + parameter.data.size] = True
    assert (~covered).any()
    assert not flat.data[~covered].any() and not flat.grad[~covered].any()


@pytest.mark.parametrize("use", [minidl.flatten, lambda p: minidl.SGD(p, lr=1), lambda p: minidl.clip_grad_norm(p, 1)])
def test_what_cannot_share_a_buffer_is_refused(use: Callable[[Any], Any]) -> None:
    params = parameters()
    other = parameters([(2, 2)], dtype="float32")
    with refuses(TypeError, "dtype", "float64", "float32", keep=params + other):
        use(params + other)
    with refuses(ValueError, "same Parameter twice", keep=params):
        use([*params, params[0]])
    with refuses(ValueError, "params is empty"):
        use([])
    with refuses(TypeError, "params[1]", "Parameter", "ndarray", keep=params):
        use([params[0], params[1].data])


def tied_model() -> Any:
    class Model(minidl.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = minidl.Embedding(6, 4, dtype="float64", rng=0)
            self.head = minidl.LinearCrossEntropy(4, 6, weight=self.embedding.weight, dtype="float64", rng=1)

    return Model()


def test_a_tied_weight_is_listed_once_and_its_gradients_add() -> None:
    model = tied_model()
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight", "head.bias"]
    x, cache = model.embedding.forward([1, 2, 2])
    _, dx = model.head.forward_backward(x, [0, 1, 5])
    from_head = model.embedding.weight.grad.copy()
    model.embedding.backward(dx, cache)
    from_both = model.embedding.weight.grad - from_head
    assert from_head.all() and from_both[[1, 2]].any() and not from_both[[0, 3, 4, 5]].any()
    before = model.embedding.weight.data.copy()
    minidl.SGD(model.parameters(), lr=1.0).step()
    np.testing.assert_allclose(model.head.weight.data, before - model.embedding.weight.grad, rtol=1e-14)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_is_independent(duplicate: Callable[[Any], Any]) -> None:
    model = filled(minidl.LSTM(3, 4, dtype="float64"))
    minidl.SGD(model.parameters(), lr=1.0)  # one buffer, which a copy must not share or carry along
    twin = duplicate(model)
    before = snapshot(model)
    assert before[:6] == snapshot(twin)[:6]
    for p in twin.parameters():
        assert not any(np.shares_memory(p.data, q.data) for q in model.parameters())
        assert p.data.base is None and p.grad.base is None
        p.data[...] = 1.0
        p.grad[...] = 2.0
    minidl.SGD(twin.parameters(), lr=1.0).step()
    assert all((p.data == -1.0).all() for p in twin.parameters())
    assert snapshot(model) == before


def test_a_copy_keeps_a_tie() -> None:
    twin = copy.deepcopy(tied_model())
    assert twin.head.weight is twin.embedding.weight
    assert len(twin.parameters()) == 2


def test_a_model_copied_with_its_optimizer_continues_by_itself() -> None:
    model = filled(minidl.Linear(3, 2, dtype="float64"))
    optimizer = minidl.Adam(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad[...] = 1.0
    optimizer.step()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before = snapshot(model, optimizer)
    twin_optimizer.step()
    assert snapshot(model, optimizer) == before
    optimizer.step()
    assert snapshot(model.parameters()) == snapshot(twin.parameters())


def test_a_copy_keeps_the_name() -> None:
    assert copy.deepcopy(minidl.Parameter(np.zeros(1), "of mine")).name == "of mine"
