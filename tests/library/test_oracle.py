"""minidl against PyTorch in float64: always against stored arrays, and live if PyTorch is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import relative_error
from reference import make

import minidl
from minidl.kernels.cpu import cuts

Arrays = dict[str, np.ndarray]
CASES = make.cases()
COMMITTED, MADE_WITH = make.read()


def lstm(t: Arrays) -> Any:
    layer = minidl.LSTM(t["weight_ih"].shape[1], t["weight_hh"].shape[1], dtype="float64")
    layer.load_state_dict({name: t[name] for name in ("weight_ih", "weight_hh", "bias")})
    return layer


def gradients(layer: minidl.Layer) -> Arrays:
    return {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}


def run_lstm(t: Arrays) -> Arrays:
    layer = lstm(t)
    y, cache = layer.forward(t["x"], minidl.Packing(t["batch_sizes"]), (t["h0"], t["c0"]))
    h, c = cache.state
    dx = layer.backward(t["dy"], cache, (t["dh"], t["dc"]))
    dh0, dc0 = cache.dstate
    if len(t["batch_sizes"]) == 1:
        stepped = layer.step(t["x"], (t["h0"], t["c0"]))
        assert all(relative_error(a, b) < 1e-14 for a, b in zip(stepped, (h, c), strict=True))
    return {"y": y, "h": h, "c": c, "dx": dx, "dh0": dh0, "dc0": dc0, **gradients(layer)}


def run_embedding(t: Arrays) -> Arrays:
    layer = minidl.Embedding(*t["weight"].shape, dtype="float64")
    layer.load_state_dict({"weight": t["weight"]})
    y, cache = layer.forward(t["ids"])
    layer.backward(t["dy"], cache)
    return {"y": y, **gradients(layer)}


def run_linear(t: Arrays) -> Arrays:
    layer = minidl.Linear(t["weight"].shape[1], len(t["weight"]), bias="bias" in t, dtype="float64")
    layer.load_state_dict({name: t[name] for name in ("weight", "bias") if name in t})
    y, cache = layer.forward(t["x"])
    return {"y": y, "dx": layer.backward(t["dy"], cache), **gradients(layer)}


def run_softmax(t: Arrays) -> Arrays:
    loss, dlogits = minidl.softmax_cross_entropy(t["logits"], t["targets"])
    return {"loss": loss, "dlogits": dlogits}


def run_head(t: Arrays) -> Arrays:
    head = minidl.LinearCrossEntropy(*t["weight"].shape[::-1], dtype="float64")
    head.load_state_dict({name: t[name] for name in ("weight", "bias")})
    loss, dx = head.forward_backward(t["x"], t["targets"])
    assert relative_error(head(t["x"], t["targets"]), loss) < 1e-14
    return {"loss": loss, "dx": dx, **gradients(head)}


def run_model(t: Arrays) -> Arrays:
    embedding = minidl.Embedding(*t["embedding"].shape, dtype="float64")
    embedding.load_state_dict({"weight": t["embedding"]})
    classes, width = t["embedding"].shape
    head = minidl.LinearCrossEntropy(width, classes, weight=embedding.weight, dtype="float64")
    head.bias.data[...] = t["head_bias"]
    recurrent = lstm(t)
    body, packing = minidl.Sequential(embedding, recurrent), minidl.Packing(t["batch_sizes"])

    y, caches = body.forward(t["ids"], packing)
    loss, dy = head.forward_backward(y, t["targets"])
    body.backward(dy, caches)
    assert relative_error(head(body(t["ids"], packing), t["targets"]), loss) < 1e-14
    tied = {"dembedding": embedding.weight.grad, "dhead_bias": head.bias.grad}
    return {"loss": loss, **tied, **gradients(recurrent)}


def run_clip(t: Arrays, max_norm: float) -> Arrays:
    params = [minidl.Parameter(np.zeros_like(grad)) for grad in t.values()]
    for parameter, grad in zip(params, t.values(), strict=True):
        parameter.grad[...] = grad
    norm = minidl.clip_grad_norm(params, max_norm)
    return {"norm": np.array(norm), **{f"grad_{i}": p.grad for i, p in enumerate(params)}}


def run_optimizer(t: Arrays, name: str) -> Arrays:
    _, class_name, arguments = make.OPTIMIZERS[name]
    params = [minidl.Parameter(values.copy()) for values in t.values()]
    optimizer = getattr(minidl, class_name)(params, **arguments)
    outputs: Arrays = {}
    for step in range(1, max(make.STEPS) + 1):
        for parameter in params:
            parameter.grad[...] = make.gradient(parameter.data, step)
        optimizer.step()
        if step in make.STEPS:
            outputs |= {f"param_{i}_after_{step}": p.data.copy() for i, p in enumerate(params)}
    return outputs


RUNS: dict[str, Callable[[Arrays], Arrays]] = {
    "lstm": run_lstm,
    "embedding": run_embedding,
    "linear": run_linear,
    "softmax": run_softmax,
    "head": run_head,
    "model": run_model,
}


def compare(name: str, inputs: Arrays, expected: Arrays) -> None:
    if name in make.OPTIMIZERS:
        got, tolerance = run_optimizer(inputs, name), 1e-9
    elif name in make.CLIPS:
        got, tolerance = run_clip(inputs, make.CLIPS[name]), 1e-10
    else:
        got, tolerance = RUNS[name.split("-")[0]](inputs), 1e-10
    assert got.keys() == expected.keys()
    errors = {key: relative_error(got[key], value) for key, value in expected.items()}
    assert all(error < tolerance for error in errors.values()), errors


def committed(name: str, part: str) -> Arrays:
    start = f"{name}/{part}/"
    return {key[len(start) :]: COMMITTED[key] for key in sorted(COMMITTED) if key.startswith(start)}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_committed_answers_of_pytorch(name: str) -> None:
    compare(name, committed(name, "in"), committed(name, "out"))


@pytest.mark.parametrize("name", ["head", "model"])
def test_equals_them_when_the_logits_are_made_in_blocks_of_two_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "LOGITS_BYTES", 2 * 9 * 8)
    compare(name, committed(name, "in"), committed(name, "out"))


def test_the_committed_file_is_small_and_says_what_made_it() -> None:
    assert make.FILE.stat().st_size < 200_000
    assert MADE_WITH.startswith("2.13.0")
    assert {key.split("/")[0] for key in COMMITTED} == set(CASES)
    assert all(np.isfinite(value).all() for value in COMMITTED.values())


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed (extra: oracle)")


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_equals_pytorch_live(name: str, torch: Any) -> None:
    compare(name, CASES[name], make.expected(name, CASES[name]))


@pytest.mark.oracle
def test_the_committed_arrays_are_what_the_script_makes_now(torch: Any) -> None:
    made, _ = make.make()
    assert made.keys() == COMMITTED.keys()
    for name, values in made.items():
        assert values.dtype == COMMITTED[name].dtype
        assert relative_error(COMMITTED[name], values) < 1e-12, name


@pytest.mark.oracle
@pytest.mark.parametrize("max_norm", [0.5, 50.0])
def test_clip_returns_pytorchs_norm_when_parameters_share_a_buffer(max_norm: float, torch: Any) -> None:
    rng = np.random.default_rng(0)
    params = [minidl.Parameter(np.zeros(shape)) for shape in ((3, 5), (7,), (1, 1))]
    minidl.SGD(params, lr=1.0)  # moves them into one buffer, with gaps between them
    twins = []
    for parameter in params:
        parameter.grad[...] = rng.normal(size=parameter.grad.shape)
        twins.append(torch.nn.Parameter(torch.zeros(parameter.grad.shape, dtype=torch.float64)))
        twins[-1].grad = torch.tensor(parameter.grad)
    norm = torch.nn.utils.clip_grad_norm_(twins, max_norm)
    assert relative_error(minidl.clip_grad_norm(params, max_norm), norm) < 1e-14
    for parameter, twin in zip(params, twins, strict=True):
        assert relative_error(parameter.grad, twin.grad.numpy()) < 1e-14
