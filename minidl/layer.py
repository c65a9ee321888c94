"""Layer: the contract of all layers, and what layers and models share: finding and storing parameters.

    y, cache = layer.forward(x, packing)   training: changes nothing on the layer; cache = what backward needs
    dx = layer.backward(dy, cache)         adds into parameter.grad; changes neither dy nor cache
    y = layer(x, packing)                  inference: keeps no cache, and Dropout is the identity

x and y are rows (N, ...), one for each item of each sequence. `packing`, a `Packing` or a `PackedSequence`, accompanies
them: it says which rows belong to which sequence (`batch_sizes`), and what else a layer needs to know about the batch.
Linear needs none of it and can be called without. So layers chain, and a `Sequential` of layers is a layer.

A layer that walks through time, such as LSTM, also has states. `forward(x, packing, state=)` starts from one and leaves
the final state in `cache.state`; `backward(dy, cache, dstate=)` takes the gradient of the final state and leaves that
of the initial one in `cache.dstate`, the only thing that it writes there.

A head that ends in the loss has `loss, dx = head.forward_backward(x, targets)` instead.
The cache is explicit, so a layer can run twice before its backward pass, or run in several threads, and the cache can
be inspected. It may share memory with x, y and an initial state: do not write into those before backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import backend, checks
from .backend import Array
from .parameter import Parameter, describe
from .sequences import AnyPacking


class Layer:
    """Base of layers and models: collects the Parameters in its attributes, in order of assignment."""

    def forward(self, x: Any, packing: AnyPacking | None = None) -> tuple[Any, Any]:
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def backward(self, dy: Any, cache: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.backward")

    def __call__(self, x: Any, packing: AnyPacking | None = None) -> Any:
        """Inference: only the output. A layer that contains a Dropout overrides it with calls of its parts."""
        if packing is not None and getattr(packing, "step", None) is not None:
            packing = packing._replace(step=None)  # a Dropout inside then raises instead of dropping units
        return self.forward(x, packing)[0]

    def __repr__(self) -> str:
        """Sizes, dtype, backend and number of weights; for a model also one line for every layer in it."""
        parts = list(_walk(self, "", set()))
        layers = [f"  {name}: {_summary(part)}" for name, part in parts if isinstance(part, Layer) and name]
        return "\n".join([_summary(self), *layers])

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """(name, Parameter) pairs, names like "lstm.weight_hh"; a tied Parameter once, under its first name."""
        found: dict[str, Parameter] = {}
        for name, part in _walk(self, "", set()):
            if isinstance(part, Parameter) and found.setdefault(name, part) is not part:
                raise ValueError(f"two parameters of {type(self).__name__} have the name {name!r}")
        return list(found.items())

    def parameters(self) -> list[Parameter]:
        """All Parameters, each once, in order of declaration."""
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all weights on the host, by name."""
        return {name: np.array(backend.to_host(p.data)) for name, p in self.named_parameters()}

    def load_state_dict(self, tensors: Mapping[str, Array]) -> None:
        """Set all weights from `tensors`; ValueError, and nothing changes, if names, shapes, kinds or ranges differ."""
        named = dict(self.named_parameters())
        host = checks.state_dict(self, tensors, {name: parameter.data.shape for name, parameter in named.items()})
        for name, parameter in named.items():
            checks.fits(name, host[name], parameter.data.dtype)
        for name, parameter in named.items():
            values = host[name].astype(parameter.data.dtype)
            parameter.data[...] = backend.of(parameter.data).asarray(values)


def _summary(layer: Layer) -> str:
    return describe(layer, [part for _, part in _walk(layer, "", set()) if isinstance(part, Parameter)])


def _walk(value: object, name: str, seen: set[int]) -> Iterator[tuple[str, Layer | Parameter]]:
    """Every Layer and Parameter in `value`, each once, under the first name that leads to it."""
    if isinstance(value, (Layer, Parameter, dict, list, tuple)):  # the last three may contain themselves
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, (Layer, Parameter)):
        yield name, value
    children: Any = ()
    if isinstance(value, Layer):
        children = vars(value).items()
    elif isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    for key, child in children:
        yield from _walk(child, f"{name}.{key}" if name else str(key), seen)
