"""The cases in which minidl is held against PyTorch, and PyTorch's answers to them, all in float64.

    python tests/reference/make.py      writes pytorch.safetensors beside this file

The file holds, for each case, its inputs ("lstm/in/x") and what PyTorch made of them ("lstm/out/y"), so the
tests need PyTorch only to see that the file is still what this script makes. A gradient is called "d<name>".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("pytorch.safetensors")
STEPS = (1, 10, 100)  # an optimizer's parameters are compared after these many steps

# name: (PyTorch's class, minidl's class, arguments); without arguments the defaults are held together as well
OPTIMIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sgd": ("SGD", "SGD", {"lr": 0.1}),
    "sgd-momentum": ("SGD", "SGD", {"lr": 0.05, "momentum": 0.9}),
    "adagrad": ("Adagrad", "AdaGrad", {}),
    "adagrad-own": ("Adagrad", "AdaGrad", {"lr": 0.2, "eps": 1e-2}),
    "adadelta": ("Adadelta", "Adadelta", {}),
    "adadelta-own": ("Adadelta", "Adadelta", {"lr": 0.5, "rho": 0.95, "eps": 1e-3}),
    "adam": ("Adam", "Adam", {}),
    "adam-own": ("Adam", "Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2}),
    "adamw": ("AdamW", "AdamW", {}),
    "adamw-own": ("AdamW", "AdamW", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.3}),
}
CLIPS = {"clip-above": 0.5, "clip-below": 50.0, "clip-tiny": 1e-8}


def gradient(values: np.ndarray, step: int) -> np.ndarray:
    """A gradient that depends on the values, changes at every step and has exact zeros now and then."""
    index = np.arange(values.size).reshape(values.shape)
    slope = 0.3 * values + np.sin(0.7 * step + index)
    return np.where(index % 5 == step % 5, 0.0, slope)


def cases() -> dict[str, dict[str, np.ndarray]]:
    """The inputs of every case by name."""
    rng = np.random.default_rng(20)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, 0.7, shape)

    def lstm(inputs: int, hidden: int, batch_sizes: list[int]) -> dict[str, np.ndarray]:
        rows, sequences = sum(batch_sizes), batch_sizes[0]
        return {
            "weight_ih": normal(4 * hidden, inputs),
            "weight_hh": normal(4 * hidden, hidden),
            "bias": normal(4 * hidden),
            "batch_sizes": np.array(batch_sizes),
            "x": normal(rows, inputs),
            "h0": normal(sequences, hidden),
            "c0": normal(sequences, hidden),
            "dy": normal(rows, hidden),
            "dh": normal(sequences, hidden),
            "dc": normal(sequences, hidden),
        }

    # Lengths 5, 3, 3, 1; all alike; one sequence; one step.
    found = {
        "lstm": lstm(3, 5, [4, 3, 3, 1, 1]),
        "lstm-rectangular": lstm(5, 2, [3, 3, 3, 3]),
        "lstm-one-sequence": lstm(2, 3, [1] * 6),
        "lstm-one-step": lstm(2, 3, [4]),
    }
    ids = np.array([3, 0, 3, 6, 3, 0, 1])
    found["embedding"] = {"weight": normal(7, 4), "ids": ids, "dy": normal(7, 4)}
    found["linear"] = {"weight": normal(4, 3), "bias": normal(4), "x": normal(5, 3), "dy": normal(5, 4)}
    found["linear-no-bias"] = {"weight": normal(2, 6), "x": normal(3, 6), "dy": normal(3, 2)}
    found["softmax"] = {"logits": 4 * normal(7, 9), "targets": rng.integers(0, 9, 7)}
    found["head"] = {
        "weight": normal(9, 3),
        "bias": normal(9),
        "x": normal(7, 3),
        "targets": rng.integers(0, 9, 7),
    }
    found["model"] = {
        "embedding": normal(8, 4),  # also the weight of the projection
        **{name: value for name, value in lstm(4, 4, [4, 3, 1]).items() if name[:4] in ("weig", "bias", "batc")},
        "head_bias": normal(8),
        "ids": rng.integers(0, 8, 8),
        "targets": rng.integers(0, 8, 8),
    }
    for name in CLIPS:
        found[name] = {"grad_0": normal(3, 5), "grad_1": normal(7)}
    for name in OPTIMIZERS:
        found[name] = {"param_0": normal(3, 5), "param_1": normal(7)}
    return found


def expected(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's answers to the case `name`."""
    if name in OPTIMIZERS:
        return _optimizer(name, inputs)
    if name in CLIPS:
        return _clip(name, inputs)
    tensors = _tensors(inputs)
    made = {
        "lstm": _lstm,
        "embedding": _embedding,
        "linear": _linear,
        "softmax": _softmax,
        "head": _head,
        "model": _model,
    }
    outputs = made[name.split("-")[0]](tensors)
    outputs |= {f"d{key}": tensor.grad for key, tensor in tensors.items() if tensor.grad is not None}
    return {key: np.array(value.detach().numpy()) for key, value in outputs.items()}


def _tensors(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    upstream = ("dy", "dh", "dc")
    return {
        name: torch.tensor(value, requires_grad=value.dtype.kind == "f" and name not in upstream)
        for name, value in inputs.items()
    }


def _run_lstm(t: dict[str, Any], x: Any, state: Any = None) -> tuple[Any, Any, Any]:
    import torch

    layer = torch.nn.LSTM(x.shape[1], t["weight_hh"].shape[1], dtype=torch.float64)
    weights = {
        "weight_ih_l0": t["weight_ih"],
        "weight_hh_l0": t["weight_hh"],
        "bias_ih_l0": t["bias"],
        "bias_hh_l0": torch.zeros_like(t["bias"]),
    }
    packed = torch.nn.utils.rnn.PackedSequence(x, t["batch_sizes"])
    y, (h, c) = torch.func.functional_call(layer, weights, (packed, state))
    return y.data, h[0], c[0]


def _lstm(t: dict[str, Any]) -> dict[str, Any]:
    y, h, c = _run_lstm(t, t["x"], (t["h0"][None], t["c0"][None]))
    ((y * t["dy"]).sum() + (h * t["dh"]).sum() + (c * t["dc"]).sum()).backward()
    return {"y": y, "h": h, "c": c}


def _embedding(t: dict[str, Any]) -> dict[str, Any]:
    import torch.nn.functional as F

    y = F.embedding(t["ids"], t["weight"])
    y.backward(t["dy"])
    return {"y": y}


def _linear(t: dict[str, Any]) -> dict[str, Any]:
    import torch.nn.functional as F

    y = F.linear(t["x"], t["weight"], t.get("bias"))
    y.backward(t["dy"])
    return {"y": y}


def _softmax(t: dict[str, Any]) -> dict[str, Any]:
    import torch.nn.functional as F

    loss = F.cross_entropy(t["logits"], t["targets"])
    loss.backward()
    return {"loss": loss}


def _head(t: dict[str, Any]) -> dict[str, Any]:
    import torch.nn.functional as F

    loss = F.cross_entropy(F.linear(t["x"], t["weight"], t["bias"]), t["targets"])
    loss.backward()
    return {"loss": loss}


def _model(t: dict[str, Any]) -> dict[str, Any]:
    import torch.nn.functional as F

    y, _, _ = _run_lstm(t, F.embedding(t["ids"], t["embedding"]))
    loss = F.cross_entropy(F.linear(y, t["embedding"], t["head_bias"]), t["targets"])
    loss.backward()
    return {"loss": loss}


def _clip(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    params = [torch.nn.Parameter(torch.zeros(grad.shape, dtype=torch.float64)) for grad in inputs.values()]
    for param, grad in zip(params, inputs.values(), strict=True):
        param.grad = torch.tensor(grad)
    norm = torch.nn.utils.clip_grad_norm_(params, CLIPS[name])
    return {"norm": norm.numpy(), **{f"grad_{i}": np.asarray(p.grad) for i, p in enumerate(params)}}


def _optimizer(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    class_name, _, arguments = OPTIMIZERS[name]
    params = [torch.nn.Parameter(torch.tensor(values)) for values in inputs.values()]
    optimizer = getattr(torch.optim, class_name)(params, **arguments)
    outputs: dict[str, np.ndarray] = {}
    for step in range(1, max(STEPS) + 1):
        for param in params:
            param.grad = torch.tensor(gradient(param.detach().numpy(), step))
        optimizer.step()
        if step in STEPS:
            outputs |= {f"param_{i}_after_{step}": p.detach().numpy().copy() for i, p in enumerate(params)}
    return outputs


def make() -> tuple[dict[str, np.ndarray], str]:
    """All arrays of the file, and the version of PyTorch that made them."""
    import torch

    arrays: dict[str, np.ndarray] = {}
    for name, inputs in cases().items():
        arrays |= {f"{name}/in/{key}": value for key, value in inputs.items()}
        arrays |= {f"{name}/out/{key}": value for key, value in expected(name, inputs).items()}
    return arrays, torch.__version__


def read() -> tuple[dict[str, np.ndarray], str]:
    """All arrays of the file as it is, and the version of PyTorch that made them."""
    from safetensors.numpy import load

    content = FILE.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), header["__metadata__"]["torch"]


if __name__ == "__main__":
    from safetensors.numpy import save

    made, version = make()
    FILE.write_bytes(save(made, {"torch": version}))
    print(f"{FILE.name}: {len(made)} arrays, {FILE.stat().st_size:,} bytes, made by PyTorch {version}")
