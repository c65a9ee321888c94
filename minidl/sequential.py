"""Sequential: layers in a chain."""

from __future__ import annotations

from typing import Any

from . import checks
from .layer import Layer
from .sequences import AnyPacking


class Sequential(Layer):
    """Each layer's output is the next one's input; all get the same packing. It is a layer itself, so it nests.

    A cache is the list of the layers' caches. Weights are named by the layer's index, such as "layers.1.weight_hh".
    """

    def __init__(self, *layers: Layer) -> None:
        for number, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layer {number} of Sequential must be a Layer, got {type(layer).__name__}")
        self.layers = layers

    def forward(self, x: Any, packing: AnyPacking | None = None) -> tuple[Any, list[Any]]:
        caches = []
        for layer in self.layers:
            x, cache = layer.forward(x, packing)
            caches.append(cache)
        return x, caches

    def backward(self, dy: Any, cache: list[Any]) -> Any:
        checks.cache(cache, list)
        if len(cache) != len(self.layers):
            raise ValueError(f"cache must have one for each of the {len(self.layers)} layers, got {len(cache)}")
        for layer, of_layer in zip(reversed(self.layers), reversed(cache), strict=True):
            dy = layer.backward(dy, of_layer)
        return dy

    def __call__(self, x: Any, packing: AnyPacking | None = None) -> Any:
        for layer in self.layers:
            x = layer(x, packing)
        return x
