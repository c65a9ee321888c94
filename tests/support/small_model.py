"""A model of all layers, small enough for any test, and its training with work split for a number of threads.

Child processes also import this file, so it must not need pytest or hypothesis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

import minidl
from minidl.kernels.cpu import cuts, threads

TOKENS, WIDTH, HIDDEN = 11, 5, 6
RAGGED = [7, 6, 6, 4, 3, 3, 2, 1, 1]
RECTANGULAR = [5] * 6


@contextlib.contextmanager
def number_of_threads(n: int) -> Iterator[None]:
    """`n` threads within the block; the previous number is restored after it."""
    before = threads.get_num_threads()
    threads.set_num_threads(n)
    try:
        yield
    finally:
        threads.set_num_threads(before)


@contextlib.contextmanager
def cut_for(n: int) -> Iterator[None]:
    """`n` threads, and thresholds so low that even sizes this small are split into threads' shares and blocks."""
    with contextlib.ExitStack() as stack:
        small = {name: 1 for name in ("PRODUCT", "NUMBERS", "STEP", "DRAWS")}
        small |= {"BLOCK": 4 * HIDDEN, "BACK": 9 * 4 * HIDDEN, "LOGITS_BYTES": 3 * TOKENS * 8}
        assert {*small, "POOLED_BYTES"} == {name for name in vars(cuts) if name.isupper()}
        for name, value in small.items():
            stack.enter_context(mock.patch.object(cuts, name, value))
        stack.enter_context(number_of_threads(n))
        yield


class Model(minidl.Layer):
    """An embedding, two LSTMs with dropout before each, and a head."""

    def __init__(self, dtype: str = "float64", sizes: tuple[int, int, int] = (TOKENS, WIDTH, HIDDEN)) -> None:
        options: Any = {"dtype": dtype}
        tokens, width, hidden = sizes
        self.embedding = minidl.Embedding(tokens, width, rng=0, **options)
        self.dropouts = [minidl.Dropout(0.25, rng=seed, **options) for seed in (1, 2)]
        self.lstms = [minidl.LSTM(width, hidden, rng=3, **options), minidl.LSTM(hidden, hidden, rng=4, **options)]
        self.head = minidl.LinearCrossEntropy(hidden, tokens, rng=5, **options)
        (first, second), (lower, upper) = self.dropouts, self.lstms
        self.above = minidl.Sequential(first, lower, second, upper)

    def forward_backward(self, ids: np.ndarray, sizes: list[int], targets: np.ndarray, step: int) -> tuple[Any, Any]:
        """(loss, the gradient that reaches the embedding)."""
        x, embedded = self.embedding.forward(ids)
        h, caches = self.above.forward(x, minidl.Packing(sizes, step=step))
        loss, dh = self.head.forward_backward(h, targets)
        dx = self.above.backward(dh, caches)
        self.embedding.backward(dx, embedded)
        return loss, dx


def batch(lengths: list[int], tokens: int = TOKENS, seed: int = 0) -> tuple[np.ndarray, list[int], np.ndarray]:
    """(ids, batch_sizes, targets) of random tokens."""
    rng = np.random.default_rng(seed)
    packed = minidl.pack([rng.integers(0, tokens, length) for length in lengths])
    return packed.data, packed.batch_sizes, rng.integers(0, tokens, len(packed.data))


def gradients(model: Model, lengths: list[int], step: int = 0) -> dict[str, np.ndarray]:
    """Every result of one forward and backward pass, by name."""
    for parameter in model.parameters():
        parameter.grad[...] = 0
    loss, dx = model.forward_backward(*batch(lengths, model.head.num_classes), step)
    return {"loss": np.asarray(loss), "dx": dx, **{name: p.grad.copy() for name, p in model.named_parameters()}}


def train(
    model: Model, lengths: list[int], steps: int = 3, make: Callable[[Any], Any] = minidl.Adam
) -> list[np.ndarray]:
    """Losses, dx and norms of `steps` clipped steps, and the weights and optimizer state after them."""
    optimizer = make(model.parameters())
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        data, sizes, targets = batch(lengths, model.head.num_classes, seed=step)
        loss, dx = model.forward_backward(data, sizes, targets, step)
        found += [np.asarray(loss), dx, np.asarray(minidl.clip_grad_norm(model.parameters(), 0.5))]
        optimizer.step()
    return found + [p.data for p in model.parameters()] + list(optimizer.state.values())


def bits(arrays: list[np.ndarray]) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in arrays]
