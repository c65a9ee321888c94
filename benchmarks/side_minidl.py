"""The model in minidl, and its training step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from sizes import Size, batches, weights

import minidl
from minidl.optimizers import Optimizer


class Model(minidl.Layer):
    """Embedding, LSTM layers and the fused projection with its loss."""

    def __init__(self, size: Size) -> None:
        self.embedding = minidl.Embedding(size.vocabulary, size.embedding)
        self.lstms = [minidl.LSTM(inputs, size.hidden) for inputs in size.inputs()]
        self.head = minidl.LinearCrossEntropy(size.hidden, size.vocabulary)
        set_weights(self, size)

    def forward_backward(self, inputs: np.ndarray, targets: np.ndarray, sizes: list[int], mark: Mark) -> float:
        """The loss; adds all gradients. `mark` is called with the name of each part when it is done."""
        x, embedding_cache = self.embedding.forward(inputs)
        mark("embedding forward")
        caches = []
        for lstm in self.lstms:
            (x, _), cache = lstm.forward(x, sizes)
            caches.append(cache)
        mark("LSTM forward")
        loss, dx = self.head.forward_backward(x, targets)
        mark("head and loss")
        for lstm, cache in zip(reversed(self.lstms), reversed(caches), strict=True):
            dx, _ = lstm.backward(dx, cache)
        mark("LSTM backward")
        self.embedding.backward(dx, embedding_cache)
        mark("embedding backward")
        return float(loss)


Mark = Callable[[str], None]


def set_weights(model: minidl.Layer, size: Size) -> None:
    """The weights that all sides start from; the model declares its parts in the order of the data's way."""
    for parameter, values in zip(model.parameters(), weights(size).values(), strict=True):
        parameter.data[...] = values


def training_step(size: Size, mark: Mark = lambda part: None) -> Callable[[], float]:
    """A function that trains one step and returns the loss before it."""
    model = Model(size)
    rates: dict[str, Callable[..., Optimizer]] = {"adam": minidl.Adam, "sgd": minidl.SGD}
    optimizer = rates[size.optimizer](model.parameters(), lr=size.lr)
    flat = [(i.reshape(-1).astype(np.int32), t.reshape(-1).astype(np.int32)) for i, t in batches(size)]
    turns, sizes = itertools.cycle(flat), [size.batch] * size.steps

    def step() -> float:
        optimizer.zero_grad()
        mark("optimizer")
        loss = model.forward_backward(*next(turns), sizes, mark)
        optimizer.step()
        mark("optimizer")
        return loss

    return step
