"""Counts the device calls of the poetry example's steps; prints JSON for test_emulator_budget.py.

Run it on the emulator. Each count is for one step, after warm-up steps of the same shapes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from emulator import trace
from emulator_build import ROOT

import minidl

sys.path.insert(0, str(ROOT / "examples" / "poetry"))

TOKENS, WIDTH, HIDDEN, SEQUENCES = 31, 6, 8, 5
WARM_UP = 3  # steps: CuPy's pool needs more than one until its blocks fit everything that is alive at once


def counted(step: Callable[[], Any]) -> dict[str, Any]:
    for _ in range(WARM_UP):
        step()
    with trace() as calls:
        kept = step()  # keeps the result alive, as training keeps a loss
    del kept
    return asdict(calls) | {"device_calls": calls.device_calls}


def lstm(times: int) -> dict[str, Any]:
    """One layer, forward and backward, over `times` steps of sequences that end one by one."""
    layer = minidl.LSTM(WIDTH, HIDDEN, backend="cupy", rng=0)
    sizes = [max(1, SEQUENCES - step // 2) for step in range(times)]
    x, dy = (minidl.to_backend(np.ones((sum(sizes), width), np.float32), "cupy") for width in (WIDTH, HIDDEN))
    packing = minidl.Packing(sizes)
    cache = layer.forward(x, packing)[1]
    return {
        "forward": counted(lambda: layer.forward(x, packing)),
        "inference": counted(lambda: layer(x, packing)),
        "backward": counted(lambda: layer.backward(dy, cache)),
        "step": counted(lambda: layer.step(x[:SEQUENCES], cache.state)),  # as in text generation
    }


def poetry(times: int, optimizer: str, pads: bool = False) -> dict[str, Any]:
    """Trainer's training step: zero_grad, forward and backward, clip, optimizer and schedule."""
    from corpus.tasks import Batch
    from learning.training import build_optimizer, evaluate, train_step
    from model import PoemModel

    model = PoemModel(TOKENS, WIDTH, HIDDEN, dropout=0.3, backend="cupy", rng=0)
    schedule = minidl.Constant(build_optimizer(optimizer, model.parameters(), 0.01))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, TOKENS, (2, SEQUENCES * times), dtype=np.int32)
    real = rng.random(SEQUENCES * times) < 0.8 if pads else None  # as in the report's protocol
    batch = Batch(ids[0], ids[1], minidl.Packing([SEQUENCES] * times), real)

    return {
        "training": counted(lambda: train_step(model, schedule, batch, 1.0)),
        "evaluation": counted(lambda: evaluate(model, [batch])),
    }


def ids_on_the_device() -> dict[str, Any]:
    """An embedding and both losses with ids that were never on the host."""
    embedding = minidl.Embedding(TOKENS, WIDTH, backend="cupy", rng=0)
    head = minidl.LinearCrossEntropy(WIDTH, TOKENS, backend="cupy", rng=0)
    ids = minidl.to_backend(np.arange(20, dtype=np.int32), "cupy")

    def step() -> Any:
        x, cache = embedding.forward(ids)
        loss, dx = head.forward_backward(x, ids)
        embedding.backward(dx, cache)
        return loss, minidl.softmax_cross_entropy(head.logits(x), ids)

    return counted(step)


def optimizing(parameters: int, name: str) -> dict[str, Any]:
    """zero_grad, clip_grad_norm and step with that many parameters."""
    from learning.training import build_optimizer

    shapes = [(3 + number, 5) for number in range(parameters)]
    params = [minidl.Parameter(minidl.to_backend(np.ones(shape, np.float32), "cupy")) for shape in shapes]
    optimizer = build_optimizer(name, params, 0.01)

    def step() -> None:
        optimizer.zero_grad()
        minidl.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()

    return counted(step)


if __name__ == "__main__":
    optimizers = ("sgd", "adagrad", "adadelta", "adam")
    found = {
        "lstm": {times: lstm(times) for times in (4, 9)},
        "poetry": {name: {times: poetry(times, name) for times in (4, 9)} for name in optimizers},
        "pads": poetry(4, "adam", pads=True),
        "ids on the device": ids_on_the_device(),
        "optimizer": {name: {number: optimizing(number, name) for number in (1, 40)} for name in optimizers},
    }
    print(json.dumps(found))
