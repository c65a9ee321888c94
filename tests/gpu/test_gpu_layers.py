"""Every layer, forward and backward, against NumPy from equal values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import agree
from twins import gradients_agree, there, twins, zero_grads

import minidl

pytestmark = pytest.mark.gpu
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(dtype)


# sizes on both sides of a warp and of a block of threads, and of one
SIZES = [(1, 1, 1), (5, 3, 4), (33, 31, 65), (130, 257, 129)]


@both_dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "wide", "out"), SIZES)
def test_linear(rows: int, wide: int, out: int, bias: bool, dtype: str) -> None:
    host, device = twins(minidl.Linear, wide, out, bias=bias, dtype=dtype)
    x, dy = normal((rows, wide), dtype), normal((rows, out), dtype, 1)
    y, cache = host.forward(x)
    y2, cache2 = device.forward(there(x))
    agree("Linear forward", y2, y, "y")
    agree("Linear forward", device(there(x)), y, "y of inference")
    for _ in range(2):  # gradients add up
        dx, dx2 = host.backward(dy, cache), device.backward(there(dy), cache2)
        agree("Linear backward", dx2, dx, "dx")
        gradients_agree("Linear backward", device, host)


@both_dtypes
@pytest.mark.parametrize("ids_on", ["host", "device"])
@pytest.mark.parametrize(("rows", "width", "tokens"), [*SIZES, (300, 3, 2)])
def test_embedding(rows: int, width: int, tokens: int, ids_on: str, dtype: str) -> None:
    host, device = twins(minidl.Embedding, tokens, width, dtype=dtype)
    ids = np.random.default_rng(0).integers(0, tokens, rows).astype(np.int32)
    ids[-1] = tokens - 1
    dy = normal((rows, width), dtype)
    y, cache = host.forward(ids)
    y2, cache2 = device.forward(there(ids) if ids_on == "device" else ids)
    assert minidl.to_host(y2).tobytes() == y.tobytes()
    for _ in range(2):
        host.backward(dy, cache), device.backward(there(dy), cache2)
        gradients_agree("Embedding backward", device, host)


def test_the_embeddings_gradient_is_the_same_in_every_run() -> None:
    device = minidl.Embedding(3, 40, backend="cupy", rng=0)
    ids, dy = np.random.default_rng(0).integers(0, 3, 500), there(normal((500, 40), "float32"))
    found = set()
    for _ in range(3):
        zero_grads(device)
        device.backward(dy, device.forward(ids)[1])
        found.add(minidl.to_host(device.weight.grad).tobytes())
    assert len(found) == 1


LENGTHS = {
    "one step": [1, 1, 1],
    "one sequence": [6],
    "rectangular": [5] * 4,
    "ragged": [9, 7, 7, 4, 2, 1, 1],
    "wide": [3] * 40 + [2] * 30,
}


@both_dtypes
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("wide", "hidden"), [(1, 1), (3, 5), (37, 33), (20, 129)])
def test_lstm(wide: int, hidden: int, lengths: list[int], dtype: str) -> None:
    host, device = twins(minidl.LSTM, wide, hidden, dtype=dtype)
    packing = minidl.pack([np.zeros(length) for length in lengths])
    x, dy = normal((sum(lengths), wide), dtype), normal((sum(lengths), hidden), dtype, 1)
    y, cache = host.forward(x, packing)
    y2, cache2 = device.forward(there(x), packing)
    agree("LSTM forward", y2, y, "y")
    agree("LSTM forward", device(there(x), packing), y, "y of inference")
    for name, got, expected in zip("hc", cache2.state, cache.state, strict=True):
        agree("LSTM forward", got, expected, name)
    for _ in range(2):
        dx, dx2 = host.backward(dy, cache), device.backward(there(dy), cache2)
        agree("LSTM backward", dx2, dx, "dx")
        for name, got, expected in zip("hc", cache2.dstate, cache.dstate, strict=True):
            agree("LSTM backward", got, expected, f"d{name}0")
        gradients_agree("LSTM backward", device, host)


@both_dtypes
def test_lstm_with_states_in_chunks(dtype: str) -> None:
    """More states than sequences, a state that comes in, and a gradient of the state that goes out."""
    host, device = twins(minidl.LSTM, 3, 6, dtype=dtype)
    x, dy = normal((8, 3), dtype), normal((8, 6), dtype, 1)
    state, dstate = (tuple(normal((4, 6), dtype, seed + part) for part in (0, 1)) for seed in (2, 4))

    def run(layer: Any, place: Any) -> list[Any]:
        zero_grads(layer)
        y1, first = layer.forward(place(x[:5]), minidl.Packing([3, 2]), tuple(map(place, state)))
        y2, second = layer.forward(place(x[5:]), minidl.Packing([2, 1]), first.state)
        dx2 = layer.backward(place(dy[5:]), second, tuple(map(place, dstate)))
        dx1 = layer.backward(place(dy[:5]), first, second.dstate)
        return [y1, *first.state, y2, *second.state, dx2, *second.dstate, dx1, *first.dstate]

    for got, expected in zip(run(device, there), run(host, np.asarray), strict=True):
        agree("LSTM with states", got, expected)
    gradients_agree("LSTM with states", device, host)


@both_dtypes
@pytest.mark.parametrize(("wide", "hidden"), [(1, 1), (3, 5), (20, 129)])
def test_lstm_step_by_step(wide: int, hidden: int, dtype: str) -> None:
    """As text is written: from zeros, and then from each step's own state."""
    host, device = twins(minidl.LSTM, wide, hidden, dtype=dtype)
    state = state2 = None
    for number in range(4):
        x = normal((7, wide), dtype, number)
        state, state2 = host.step(x, state), device.step(there(x), state2)
        for name, got, expected in zip("hc", state2, state, strict=True):
            agree("LSTM step", got, expected, name)


@pytest.mark.parametrize("scale", [20.0, 1e4])
def test_lstm_with_saturated_gates(scale: float) -> None:
    host, device = twins(minidl.LSTM, 3, 5)
    x, dy = normal((12, 3), "float32", scale=scale), normal((12, 5), "float32", 1)
    y, cache = host.forward(x, minidl.Packing([4, 4, 4]))
    y2, cache2 = device.forward(there(x), minidl.Packing([4, 4, 4]))
    agree("LSTM forward", y2, y, "y")
    dx, dx2 = host.backward(dy, cache), device.backward(there(dy), cache2)
    if scale < 100:
        agree("LSTM backward", dx2, dx, "dx")
    else:  # the last bits of z decide what little gradient is left
        assert np.isfinite(minidl.to_host(dx2)).all() and np.abs(minidl.to_host(dx2)).max() < 1e-4


@both_dtypes
@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_dropout_drops_the_same_units(p: float, dtype: str) -> None:
    layer = minidl.Dropout(p, rng=0)
    x, dy = normal((70, 33), dtype), normal((70, 33), dtype, 1)
    for rows in (None, np.arange(100, 170)):
        packing = minidl.Packing([70], step=5, rows=rows)
        y, cache = layer.forward(x, packing)
        y2, cache2 = layer.forward(there(x), packing)
        assert minidl.to_host(y2).tobytes() == y.tobytes()
        assert minidl.to_host(layer.backward(there(dy), cache2)).tobytes() == layer.backward(dy, cache).tobytes()
