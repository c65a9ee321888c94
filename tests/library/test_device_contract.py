"""The layer contract on CuPy's double: the same as on NumPy."""

from __future__ import annotations

from typing import Any

import device_double
import numpy as np
import pytest
from helpers import filled, python, refuses

import minidl

BACKENDS = ("numpy", "cupy")
TOKENS, WIDTH, HIDDEN = 7, 4, 5
INPUTS, TARGETS = [[0, 1, 2, 2, 6], [4], [3, 3, 0], [5, 5, 1]], [[1, 2, 2, 4, 0], [1], [3, 0, 4], [6, 1, 2]]
on_both = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    return device_double.install(monkeypatch)


def there(array: Any, backend: str = "cupy") -> Any:
    return minidl.to_backend(array, backend)


def stack(backend: str, dtype: str = "float64") -> minidl.Sequential:
    """Embedding, Dropout, LSTM, LSTM, Linear: of the same weights on both sides."""
    options: Any = {"dtype": dtype, "backend": backend}
    layers = [
        minidl.Embedding(TOKENS, WIDTH, rng=0, **options),
        minidl.Dropout(0.25, rng=1, **options),
        minidl.LSTM(WIDTH, HIDDEN, rng=2, **options),
        minidl.LSTM(HIDDEN, HIDDEN, rng=3, **options),
        minidl.Linear(HIDDEN, TOKENS, rng=4, **options),
    ]
    return minidl.Sequential(*layers)


def train(model: minidl.Sequential, batch: minidl.PackedSequence, targets: Any) -> list[Any]:
    """The loss of each of four steps, left where it was computed."""
    optimizer, losses = minidl.Adam(model.parameters(), lr=0.02), []
    for step in range(4):
        optimizer.zero_grad()
        logits, caches = model.forward(batch.data, batch._replace(step=step))
        loss, dlogits = minidl.softmax_cross_entropy(logits, targets)
        assert model.backward(dlogits, caches) is None, "ids have no gradient"
        minidl.clip_grad_norm(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss)
    return losses


@pytest.mark.parametrize("ids_on", BACKENDS)
@pytest.mark.parametrize("rows", [None, np.arange(12)[::-1] + 2**33], ids=["whole", "a part"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_a_sequential_trains_as_on_numpy_and_never_waits(
    ids_on: str, rows: Any, dtype: str, tolerance: float, cupy: Any
) -> None:
    host, device = stack("numpy", dtype), stack("cupy", dtype)
    targets = minidl.pack(TARGETS)
    expected = train(host, minidl.pack(INPUTS)._replace(rows=rows), targets.data)
    batch = minidl.pack(INPUTS, backend=ids_on)._replace(rows=rows)
    cupy.syncs.clear(), cupy.calls.clear()
    losses = train(device, batch, targets.data)
    logits = device(batch.data, batch._replace(step=3))  # of inference, which drops nothing and needs no step
    assert cupy.syncs == []
    assert cupy.calls.count("dropout_forward") == 4 and cupy.calls.count("embedding_runs") == 4

    np.testing.assert_allclose([float(loss) for loss in losses], expected, rtol=tolerance)
    assert expected[-1] < expected[0]
    wanted = host(minidl.pack(INPUTS).data, minidl.pack(INPUTS))
    np.testing.assert_allclose(minidl.to_host(logits), wanted, rtol=tolerance, atol=tolerance)
    weights, wanted_weights = device.state_dict(), host.state_dict()
    assert weights.keys() == wanted_weights.keys() and len(weights) == 9
    for name, values in wanted_weights.items():
        np.testing.assert_allclose(weights[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_sequentials_calls_are_those_of_its_layers(cupy: Any) -> None:
    model, batch = stack("cupy"), minidl.pack(INPUTS, backend="cupy")._replace(step=0)
    cupy.calls.clear()
    y, caches = model.forward(batch.data, batch)
    model.backward(y, caches)
    together = list(cupy.calls)
    cupy.calls.clear()
    x, kept = batch.data, []
    for layer in model.layers:
        x, cache = layer.forward(x, batch)
        kept.append((layer, cache))
    for layer, cache in reversed(kept):
        x = layer.backward(x, cache)
    assert together == cupy.calls and len(together) > 20


def rows_of(*arrays: Any) -> list[np.ndarray]:
    return [minidl.to_host(array) for array in arrays]


def agree(results: list[list[np.ndarray]]) -> None:
    for got, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def lstms() -> list[tuple[str, Any]]:
    """(backend, layer) twice, of the same weights, biases and all."""
    host, device = (minidl.LSTM(WIDTH, HIDDEN, dtype="float64", backend=backend) for backend in BACKENDS)
    device.load_state_dict(filled(host).state_dict())
    return list(zip(BACKENDS, (host, device), strict=True))


@pytest.mark.parametrize("asked", [True, False], ids=["dstate", "no dstate"])
@pytest.mark.parametrize("beyond", [0, 2])
@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
def test_the_states_of_an_lstms_cache_are_the_hosts(given: bool, beyond: int, asked: bool, cupy: Any) -> None:
    """Also with `beyond` rows of other sequences than the batch's, and both ends with and without a state."""
    rng, packing = np.random.default_rng(0), minidl.pack(INPUTS)
    count, B = len(packing.data), packing.batch_sizes[0] + (beyond if given else 0)
    x, dy = rng.normal(size=(count, WIDTH)), rng.normal(size=(count, HIDDEN))
    states = rng.normal(size=(4, B, HIDDEN))
    results = []
    for backend, lstm in lstms():
        h0, c0, dh, dc = (there(part, backend) for part in states)
        cupy.syncs.clear()
        y, cache = lstm.forward(there(x, backend), packing, (h0, c0) if given else None)
        assert cache.dstate is None
        kept = tuple(part.copy() for part in cache.state)
        dx = lstm.backward(there(dy, backend), cache, (dh, dc) if asked else None)
        assert cupy.syncs == []
        assert [part.shape for part in (*cache.state, *cache.dstate)] == [(B, HIDDEN)] * 4
        for part, before in zip((h0, c0, dh, dc, *cache.state), (*states, *kept), strict=True):
            assert np.array_equal(minidl.to_host(part), minidl.to_host(before)), "what came in was written into"
        if given:
            ends = rows_of(h0[B - beyond :], c0[B - beyond :])
            for part, as_it_came in zip(cache.state, ends, strict=True):
                assert np.array_equal(minidl.to_host(part)[B - beyond :], as_it_came)
        grads = [parameter.grad for parameter in lstm.parameters()]
        results.append(rows_of(y, dx, *cache.state, *cache.dstate, *grads))
    agree(results)


def test_a_step_at_a_time_is_the_hosts_and_the_whole_walks(cupy: Any) -> None:
    x, results = np.random.default_rng(0).normal(size=(3, 2, WIDTH)), []
    for backend, lstm in lstms():
        state, found = None, []
        cupy.syncs.clear()
        for x_t in x:
            before = None if state is None else [part.copy() for part in state]
            after = lstm.step(there(x_t, backend), state)
            for part, old in zip(state or (), before or (), strict=True):
                assert np.array_equal(minidl.to_host(part), minidl.to_host(old)), "the state before was written into"
            state = after
            found += state
        y, cache = lstm.forward(there(x.reshape(6, WIDTH), backend), minidl.Packing([2, 2, 2]))
        for part, last in zip(state, cache.state, strict=True):
            np.testing.assert_allclose(minidl.to_host(part), minidl.to_host(last), rtol=1e-13)
        np.testing.assert_allclose(np.concatenate(rows_of(*found[::2])), minidl.to_host(y), rtol=1e-13)
        results.append(rows_of(*found))
    agree(results)


@on_both
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_wants_a_state_of_as_many_rows(rows: int, backend: str) -> None:
    lstm = dict(lstms())[backend]
    x, state = there(np.ones((2, WIDTH)), backend), there(np.ones((rows, HIDDEN)), backend)
    with refuses(ValueError, "state h", "2", rows):
        lstm.step(x, (state, state))


@on_both
@pytest.mark.parametrize("call", ["forward", "__call__"])
def test_a_list_of_sizes_is_no_packing(call: str, backend: str) -> None:
    lstm = dict(lstms())[backend]
    with refuses(TypeError, "packing", "minidl.Packing(batch_sizes)", "list"):
        getattr(lstm, call)(there(np.ones((2, WIDTH)), backend), [2])


@pytest.mark.parametrize("number", range(5))
def test_backward_changes_neither_dy_nor_the_cache_and_adds(number: int) -> None:
    """gradcheck, which would see it, works on the host."""
    model, batch, rng = stack("cupy"), minidl.pack(INPUTS, backend="cupy")._replace(step=2), np.random.default_rng(0)
    x = batch.data
    for layer in model.layers[:number]:
        x = layer.forward(x, batch)[0]
    layer = model.layers[number]
    y, cache = layer.forward(x, batch)
    dy = rng.normal(size=y.shape)
    given, found = there(dy), []
    for parameter in layer.parameters():
        parameter.grad[...] = 1.0
    for _ in range(2):
        dx = layer.backward(given, cache)
        grads = rows_of(*(parameter.grad for parameter in layer.parameters()))
        found.append(([] if dx is None else rows_of(dx), grads))
    assert np.array_equal(minidl.to_host(given), dy)
    (dx_once, once), (dx_twice, twice) = found
    assert all(np.array_equal(a, b) for a, b in zip(dx_once, dx_twice, strict=True))
    for a, b in zip(once, twice, strict=True):
        assert np.abs(a - 1).max() > 0
        np.testing.assert_allclose(b - 1, 2 * (a - 1), rtol=1e-12, atol=1e-12)


def test_the_kernels_are_loaded_by_name_however_often() -> None:
    """The package of that name must not take the function's place once it is imported."""
    code = """
        from minidl import kernels
        for subject in ("lstm", "optimizers", "lstm"):
            print(kernels.load_cuda(subject).__name__)
    """
    assert [line.rsplit(".")[-1] for line in python(code).split()] == ["lstm", "optimizers", "lstm"]
