"""Sequential: layers chained by the layer contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import filled, refuses, snapshot

import minidl

SIZES = [3, 3, 2, 1]
IDS = np.array([4, 1, 1, 0, 2, 6, 6, 3, 5])
PACKING = minidl.Packing(SIZES, step=3)


def layers() -> list[minidl.Layer]:
    options: Any = {"dtype": "float64"}
    lower, upper = minidl.LSTM(4, 5, **options), minidl.LSTM(5, 3, **options)
    made: list[minidl.Layer] = [minidl.Embedding(7, 4, **options), minidl.Dropout(0.3, rng=1), lower]
    made += [minidl.Dropout(0.3, rng=2), upper, minidl.Linear(3, 2, **options)]
    return [filled(layer, seed) for seed, layer in enumerate(made)]


def by_hand(made: list[minidl.Layer], dy: np.ndarray) -> Any:
    x, caches = IDS, []
    for layer in made:
        x, cache = layer.forward(x, PACKING)
        caches.append(cache)
    for layer, cache in zip(made[::-1], caches[::-1], strict=True):
        dy = layer.backward(dy, cache)
    return x, dy, [parameter.grad for layer in made for parameter in layer.parameters()]


@pytest.mark.parametrize("nested", [False, True])
def test_it_computes_what_its_layers_do_one_by_one_bit_for_bit(nested: bool) -> None:
    dy = np.random.default_rng(0).normal(size=(9, 2))
    expected = by_hand(layers(), dy)
    made = layers()
    model = minidl.Sequential(made[0], minidl.Sequential(*made[1:3], minidl.Sequential(*made[3:]))) if nested else None
    model = model or minidl.Sequential(*made)
    y, caches = model.forward(IDS, PACKING)
    assert model.backward(dy, caches) is None, "ids have no gradient"
    assert snapshot(y, None, [p.grad for p in model.parameters()]) == snapshot(*expected)


def test_a_call_is_inference_whatever_the_packing_says() -> None:
    made = layers()
    model = minidl.Sequential(*made)
    expected = made[5](made[4](made[2](made[0](IDS), PACKING), PACKING))
    for packing in (PACKING, minidl.Packing(SIZES)):
        assert snapshot(model(IDS, packing)) == snapshot(expected)
    assert snapshot(model.forward(IDS, PACKING)[0]) != snapshot(expected)


def test_training_without_a_step_is_refused() -> None:
    with refuses(TypeError, "packing.step"):
        minidl.Sequential(*layers()).forward(IDS, minidl.Packing(SIZES))


def test_a_packed_batch_is_its_own_packing() -> None:
    model = minidl.Sequential(*layers())
    batch = minidl.pack([[4, 0, 6, 5], [1, 2, 3], [1, 6]])
    assert list(batch.data) == list(IDS)
    assert snapshot(model(batch.data, batch)) == snapshot(model(IDS, minidl.Packing(SIZES)))


def test_weights_are_named_by_their_layers_numbers() -> None:
    made = layers()
    model = minidl.Sequential(made[0], minidl.Sequential(*made[1:5]), made[5])
    names = [
        "layers.0.weight",
        *(f"layers.1.layers.{layer}.{name}" for layer in (1, 3) for name in ("weight_ih", "weight_hh", "bias")),
        *("layers.2.weight", "layers.2.bias"),
    ]
    assert list(model.state_dict()) == names
    again = minidl.Sequential(minidl.Embedding(7, 4), minidl.Sequential(*layers()[1:5]), minidl.Linear(3, 2))
    again.load_state_dict(model.state_dict())
    for name, array in again.state_dict().items():
        np.testing.assert_allclose(array, model.state_dict()[name], rtol=1e-6)


def test_its_gradients_are_the_numerical_ones() -> None:
    report = minidl.gradcheck(minidl.Sequential(*layers()), IDS, PACKING)
    assert len(report.checks) == 9 and report.max_error < 1e-6
    rows = np.random.default_rng(1).normal(size=(9, 4))
    report = minidl.gradcheck(minidl.Sequential(*layers()[1:]), rows, PACKING)
    assert report.checks[0].name == "input 0" and report.max_error < 1e-6


def test_a_layer_that_is_there_twice_adds_its_gradients_and_has_its_weights_once() -> None:
    linear = filled(minidl.Linear(3, 3, dtype="float64"))
    model, x = minidl.Sequential(linear, minidl.Dropout(0.0), linear), np.random.default_rng(0).normal(size=(5, 3))
    assert list(model.state_dict()) == ["layers.0.weight", "layers.0.bias"]
    other, dy = filled(minidl.Linear(3, 3, dtype="float64")), np.random.default_rng(1).normal(size=(5, 3))
    (middle, lower), packing = other.forward(x), minidl.Packing([5], step=0)
    expected, upper = other.forward(middle)
    y, caches = model.forward(x, packing)
    dx = model.backward(dy, caches)
    assert snapshot(y, dx) == snapshot(expected, other.backward(other.backward(dy, upper), lower))
    assert snapshot(model(x, packing)) == snapshot(expected)
    assert snapshot(linear.weight.grad, linear.bias.grad) == snapshot(other.weight.grad, other.bias.grad)
    assert minidl.gradcheck(model, x, minidl.Packing([5], step=0)).max_error < 1e-7


def test_it_runs_twice_before_its_backward() -> None:
    model = minidl.Sequential(*layers())
    dy = np.random.default_rng(0).normal(size=(9, 2))
    _, first = model.forward(IDS, PACKING)
    _, second = model.forward(IDS[::-1].copy(), PACKING._replace(step=4))
    model.backward(dy, second)
    model.backward(dy, first)
    expected = by_hand(layers(), dy)[2]
    fresh = minidl.Sequential(*layers())
    fresh.backward(dy, fresh.forward(IDS[::-1].copy(), PACKING._replace(step=4))[1])
    for both, one, other in zip(model.parameters(), expected, fresh.parameters(), strict=True):
        np.testing.assert_allclose(both.grad, one + other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("thing", [None, "x", minidl.Linear, [minidl.Linear(2, 2)], abs])
def test_what_is_no_layer_is_refused_by_its_number(thing: Any) -> None:
    with refuses(TypeError, "layer 1 of Sequential", type(thing).__name__):
        minidl.Sequential(minidl.Linear(2, 2), thing)


def test_caches_of_another_number_are_refused_and_nothing_is_added() -> None:
    model = minidl.Sequential(*layers())
    _, caches = model.forward(IDS, PACKING)
    for wrong in (caches[:-1], [*caches, None], []):
        with refuses(ValueError, "cache", "6 layers", len(wrong), keep=model):
            model.backward(np.ones((9, 2)), wrong)


def test_it_prints_its_layers() -> None:
    text = repr(minidl.Sequential(minidl.Embedding(7, 4), minidl.Sequential(minidl.LSTM(4, 5), minidl.Linear(5, 2))))
    first, *others = text.splitlines()
    assert first.startswith("Sequential(") and "weights=240" in first
    assert [line.split(":")[0].strip() for line in others] == [
        *("layers.0", "layers.1", "layers.1.layers.0", "layers.1.layers.1"),
    ]
    assert "LSTM(input_size=4, hidden_size=5" in others[2]


def test_one_without_layers_is_the_identity() -> None:
    model, x = minidl.Sequential(), np.ones((2, 3))
    y, caches = model.forward(x)
    assert y is x and model(x) is x and model.backward(x, caches) is x and model.parameters() == []
