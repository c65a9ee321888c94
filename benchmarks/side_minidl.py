"""The model in minidl, and its training step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from sizes import Size, batches, weights

import minidl
from minidl.optimizers import Optimizer


class Model(minidl.Layer):
    """Embedding, LSTM layers and the fused projection with its loss."""

    def __init__(self, size: Size, backend: str = "numpy") -> None:
        self.embedding = minidl.Embedding(size.vocabulary, size.embedding, backend=backend)
        self.lstms = minidl.Sequential(*(minidl.LSTM(inputs, size.hidden, backend=backend) for inputs in size.inputs()))
        self.head = minidl.LinearCrossEntropy(size.hidden, size.vocabulary, backend=backend)
        set_weights(self, size)

    def forward_backward(self, inputs: np.ndarray, targets: np.ndarray, sizes: list[int], mark: Mark) -> Any:
        """The loss; adds to all gradients. `mark` is called with the name of each part when it is done.

        The loss stays where it was computed, so that nothing waits for a GPU.
        """
        order, (ids, targets) = minidl.sequences.place(inputs, targets, like=self.embedding.weight.data)
        packing = minidl.Packing(sizes, order)
        x, embedding_cache = self.embedding.forward(ids, packing)
        mark("embedding forward")
        h, caches = self.lstms.forward(x, packing)
        mark("LSTM forward")
        loss, dh = self.head.forward_backward(h, targets)
        mark("head and loss")
        dx = self.lstms.backward(dh, caches)
        mark("LSTM backward")
        self.embedding.backward(dx, embedding_cache)
        mark("embedding backward")
        return loss


Mark = Callable[[str], None]


def set_weights(model: minidl.Layer, size: Size) -> None:
    """Set the initial weights that all sides share; the model declares its layers in forward order."""
    for parameter, values in zip(model.parameters(), weights(size).values(), strict=True):
        parameter.data[...] = minidl.to_backend(values, minidl.backend.of(parameter.data).__name__)


def training_step(
    size: Size, mark: Mark = lambda part: None, *, backend: str = "numpy", clip: float | None = None
) -> Callable[[], Any]:
    """A function that trains one step and returns the loss before it. `clip`: the maximum norm of the gradient."""
    model = Model(size, backend)
    rates: dict[str, Callable[..., Optimizer]] = {"adam": minidl.Adam, "sgd": minidl.SGD}
    optimizer = rates[size.optimizer](model.parameters(), lr=size.lr)
    flat = [(i.reshape(-1).astype(np.int32), t.reshape(-1).astype(np.int32)) for i, t in batches(size)]
    turns, sizes = itertools.cycle(flat), [size.batch] * size.steps

    def step() -> Any:
        optimizer.zero_grad()
        mark("optimizer")
        loss = model.forward_backward(*next(turns), sizes, mark)
        if clip is not None:
            minidl.clip_grad_norm(optimizer.params, clip)
            mark("clipping")
        optimizer.step()
        mark("optimizer")
        return loss

    return step
