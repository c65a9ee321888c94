"""User-defined layers: the library treats them like its own."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import device_double
import numpy as np
import pytest
from helpers import filled
from own_layers import GRU, LayerNorm, Residual
from safetensors.numpy import load_file

import minidl

SIZES = [4, 4, 3, 1]
WORDS = [[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]


def body(dtype: str = "float64", backend: str = "numpy") -> minidl.Sequential:
    """All three, nested, among the library's own."""
    options: Any = {"dtype": dtype, "backend": backend}
    inner = minidl.Sequential(LayerNorm(6, **options), minidl.Dropout(0.2, rng=1), GRU(6, 6, rng=2, **options))
    lstm, linear = minidl.LSTM(6, 5, rng=3, **options), minidl.Linear(5, 6, rng=4, **options)
    return minidl.Sequential(minidl.Embedding(11, 6, rng=0, **options), Residual(inner), lstm, linear)


def batch(backend: str = "numpy") -> tuple[minidl.PackedSequence, Any]:
    """Words, and after every letter the next one; 0 begins and ends."""
    x, y = (
        minidl.pack([[*first, *word, *last] for word in WORDS], backend) for first, last in (((0,), ()), ((), (0,)))
    )
    return x, y.data


def trained(dtype: str, backend: str = "numpy", steps: int = 30) -> tuple[minidl.Layer, list[float]]:
    model, head = body(dtype, backend), minidl.LinearCrossEntropy(6, 11, rng=5, dtype=dtype, backend=backend)
    optimizer, losses = minidl.Adam([*model.parameters(), *head.parameters()], lr=0.02), []
    x, targets = batch(backend)
    for step in range(steps):
        optimizer.zero_grad()
        h, caches = model.forward(x.data, x._replace(step=step))
        loss, dh = head.forward_backward(h, targets)
        model.backward(dh, caches)
        optimizer.step()
        losses.append(float(minidl.to_host(loss)))
    return model, losses


@pytest.mark.parametrize("layer", [GRU, LayerNorm, Residual])
def test_it_takes_less_than_60_lines(layer: type) -> None:
    assert len(inspect.getsource(layer).splitlines()) < 60


def test_a_gru_passes_gradcheck_with_and_without_a_state() -> None:
    gru, rng = filled(GRU(3, 4, dtype="float64")), np.random.default_rng(0)
    x, packing = rng.normal(size=(sum(SIZES), 3)), minidl.Packing(SIZES)
    report = minidl.gradcheck(gru, x, packing, state=rng.normal(size=(5, 4)))
    assert [check.name for check in report.checks][:2] == ["input 0", "state 0"] and report.max_error < 1e-6
    assert minidl.gradcheck(gru, x, packing).max_error < 1e-6


def test_a_gru_with_a_mistake_is_refused() -> None:
    class Mistaken(GRU):
        def backward(self, dy: Any, cache: Any, dstate: Any = None) -> Any:
            dx = super().backward(dy, cache)
            cache.dstate = np.zeros_like(cache.dstate) if dstate is None else cache.dstate
            return dx

    gru, rng = filled(Mistaken(3, 4, dtype="float64")), np.random.default_rng(0)
    with pytest.raises(minidl.GradientError):  # it forgets the gradient of the last state
        minidl.gradcheck(gru, rng.normal(size=(sum(SIZES), 3)), minidl.Packing(SIZES), state=rng.normal(size=(4, 4)))


def test_layer_norm_and_residual_pass_gradcheck() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sum(SIZES), 4))
    assert minidl.gradcheck(filled(LayerNorm(4, dtype="float64")), x).max_error < 1e-6
    residual = filled(Residual(minidl.Sequential(LayerNorm(4, dtype="float64"), GRU(4, 4, dtype="float64"))))
    assert minidl.gradcheck(residual, x, minidl.Packing(SIZES)).max_error < 1e-6


def test_all_three_chain_in_a_sequential_and_pass_gradcheck_there() -> None:
    x, _ = batch()
    report = minidl.gradcheck(filled(body()), x.data, x._replace(step=3))
    assert report.max_error < 1e-6 and len(report.checks) == len(body().parameters()) == 12


def test_they_train() -> None:
    _, losses = trained("float64", steps=150)
    assert losses[0] == pytest.approx(np.log(11), abs=0.4) and losses[-1] < 0.8


def test_they_train_alike_on_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host, losses = trained("float64")
    device_double.install(monkeypatch)
    on_device, found = trained("float64", "cupy")
    np.testing.assert_allclose(found, losses, rtol=1e-9)
    for (name, ours), theirs in zip(on_host.state_dict().items(), on_device.state_dict().values(), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-7, atol=1e-9, err_msg=name)


def test_a_call_drops_nothing_and_needs_no_step() -> None:
    model, (x, _) = body(), batch()
    once = model(x.data, x)
    np.testing.assert_array_equal(model(x.data, x._replace(step=5)), once)
    assert not np.allclose(model.forward(x.data, x._replace(step=5))[0], once)


def test_they_are_saved_and_loaded(tmp_path: Path) -> None:
    model, _ = trained("float32", steps=3)
    assert "layers.1.inner.layers.2.weight_hh" in model.state_dict() and "layers.2.weight_hh" in model.state_dict()
    minidl.save(tmp_path / "model", model.state_dict(), {})
    again = body("float32")
    again.load_state_dict(minidl.load(tmp_path / "model")[0])
    x, _ = batch()
    np.testing.assert_array_equal(again(x.data, x), model(x.data, x))


def test_interop_converts_the_lstm_and_passes_the_gru_on(tmp_path: Path) -> None:
    ours = body("float32").state_dict()
    with pytest.warns(UserWarning, match=r"'layers.1.inner.layers.2.weight_hh' \(18, 6\)"):
        minidl.interop.write_safetensors(tmp_path / "theirs", ours)
    theirs = load_file(tmp_path / "theirs")
    assert {"layers.2.weight_hh_l0", "layers.1.inner.layers.2.weight_hh"} <= theirs.keys()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        back = minidl.interop.read_safetensors(tmp_path / "theirs")
    assert back.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.oracle
def test_the_gru_is_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: oracle)")
    gru, rng = filled(GRU(3, 4, dtype="float64")), np.random.default_rng(0)
    theirs = torch.nn.GRU(3, 4, dtype=torch.float64)
    theirs.load_state_dict({f"{name}_l0": torch.from_numpy(array) for name, array in gru.state_dict().items()})
    x = torch.from_numpy(rng.normal(size=(sum(SIZES), 3))).requires_grad_()
    dy, h0 = rng.normal(size=(sum(SIZES), 4)), torch.from_numpy(rng.normal(size=(1, 4, 4)))
    packed = torch.nn.utils.rnn.PackedSequence(x, torch.tensor(SIZES))
    expected, last = theirs(packed, h0)
    expected.data.backward(torch.from_numpy(dy))
    y, cache = gru.forward(x.detach().numpy(), minidl.Packing(SIZES), h0[0].numpy())
    np.testing.assert_allclose(y, expected.data.detach(), rtol=1e-12)
    np.testing.assert_allclose(cache.state, last[0].detach(), rtol=1e-12)
    np.testing.assert_allclose(gru.backward(dy, cache), x.grad, rtol=1e-10)
    for name, parameter in gru.named_parameters():
        np.testing.assert_allclose(parameter.grad, getattr(theirs, f"{name}_l0").grad, rtol=1e-10, err_msg=name)
