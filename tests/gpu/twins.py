"""The same layer or model twice: on the host and on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from agreement import agree

import minidl


def twins(make: Callable[..., Any], *sizes: Any, **options: Any) -> tuple[Any, Any]:
    """(host, device) of `make(*sizes, backend=...)`, with the same random values, biases and all."""
    host, device = (make(*sizes, backend=backend, rng=0, **options) for backend in ("numpy", "cupy"))
    rng = np.random.default_rng(1)
    for parameter in host.parameters():
        parameter.data[...] = rng.normal(0.0, 0.5, parameter.data.shape)
    device.load_state_dict(host.state_dict())
    return host, device


def zero_grads(*models: minidl.Layer) -> None:
    for model in models:
        for parameter in model.parameters():
            parameter.grad[...] = 0


def gradients_agree(subject: str, device: minidl.Layer, host: minidl.Layer) -> None:
    for (name, p), (_, q) in zip(device.named_parameters(), host.named_parameters(), strict=True):
        agree(subject, p.grad, q.grad, f"the gradient of {name}")


def there(array: Any) -> Any:
    return minidl.to_backend(array, "cupy")


class Model(minidl.Layer):
    """All layers: embedding, dropout, two LSTMs, dropout, Linear, and the head, whose weight may be the embedding's."""

    def __init__(
        self,
        tokens: int,
        width: int,
        hidden: int,
        *,
        backend: str,
        rng: int,
        dtype: str = "float32",
        tied: bool = False,
    ) -> None:
        options: Any = {"backend": backend, "dtype": dtype}
        self.embedding = minidl.Embedding(tokens, width, rng=rng, **options)
        self.dropouts = [minidl.Dropout(0.25, rng=rng + seed, **options) for seed in (1, 2)]
        self.lstms = [
            minidl.LSTM(width, hidden, rng=rng + 3, **options),
            minidl.LSTM(hidden, hidden, rng=rng + 4, **options),
        ]
        self.linear = minidl.Linear(hidden, width, rng=rng + 5, **options)
        (first, second), (lower, upper) = self.dropouts, self.lstms
        self.body = minidl.Sequential(self.embedding, first, lower, upper, second, self.linear)
        shared = self.embedding.weight if tied else None
        self.head = minidl.LinearCrossEntropy(width, tokens, weight=shared, rng=rng + 6, **options)

    def forward_backward(self, ids: Any, batch_sizes: Any, targets: Any, step: int) -> Any:
        h, caches = self.body.forward(ids, minidl.Packing(batch_sizes, step=step))
        loss, dh = self.head.forward_backward(h, targets)
        self.body.backward(dh, caches)
        return loss


def batch(tokens: int, seed: int, sequences: int = 7, longest: int = 9) -> tuple[Any, Any, Any]:
    """(ids, batch_sizes, targets) of random tokens in sequences of random lengths, on the host."""
    rng = np.random.default_rng(seed)
    packed = minidl.pack([rng.integers(0, tokens, rng.integers(1, longest + 1)) for _ in range(sequences)])
    return packed.data, packed.batch_sizes, rng.integers(0, tokens, len(packed.data))
