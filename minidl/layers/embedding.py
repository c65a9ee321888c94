"""Embedding: a table with one row per id."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import backend, checks, initializers
from ..backend import Array, Rng
from ..layer import Layer
from ..parameter import create
from ..workspace import empty

if TYPE_CHECKING:
    from ..kernels.embedding import RowsById


class EmbeddingCache(NamedTuple):
    """What backward needs."""

    ids: Array  # (N,)
    order: RowsById | None  # on a device, where the host has sorted the ids


class Embedding(Layer):
    """y[n] = weight[ids[n]].

    weight (num_embeddings, embedding_dim) starts as N(0, 1). ids (N,) are integers in [0, num_embeddings);
    y is (N, embedding_dim). Ids from the host are checked (IndexError). For ids on a GPU give the `order` that
    `pack` made of them on the host: they are checked by it, and the gradient is found faster; without, they
    are trusted.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: str = "float32",
        backend: str = "numpy",
        rng: Rng = None,
    ) -> None:
        self.num_embeddings = checks.size("num_embeddings", num_embeddings)
        self.embedding_dim = checks.size("embedding_dim", embedding_dim)
        values = partial(initializers.normal, (self.num_embeddings, self.embedding_dim), rng=rng)
        self.weight = create("Embedding.weight", values, dtype, backend)

    def forward(self, ids: Array, order: RowsById | None = None) -> tuple[Array, EmbeddingCache]:
        weight = self.weight.data
        if backend.is_device(weight):
            from ..kernels import embedding as device

            ids, order = device.checked(ids, order, weight)
            return weight[ids], EmbeddingCache(ids, order)
        return self(ids), EmbeddingCache(np.asarray(ids), None)

    def __call__(self, ids: Array) -> Array:
        # not by way of the base's search for a Dropout: this is called for every character written
        weight = self.weight.data
        ids = checks.ids("ids", ids, self.num_embeddings, like=weight)
        if backend.is_device(weight):
            return weight[ids]
        y = empty((len(ids), self.embedding_dim), weight)
        # ids are in range by now; with "clip" NumPy writes into `out` at once
        return np.take(weight, ids, axis=0, out=y, mode="clip")

    def backward(self, dy: Array, cache: EmbeddingCache) -> None:
        """dL/dweight[v] = the sum of dy[n] over all n with ids[n] = v. Ids have no gradient: returns None."""
        checks.cache(cache, EmbeddingCache)
        checks.matrix("dy", dy, self.embedding_dim, like=self.weight.data, rows=len(cache.ids))
        if backend.is_device(self.weight.grad):
            from ..kernels import embedding as device

            device.add_rows(self.weight.grad, cache.ids, dy, cache.order)
        else:
            backend.add_rows(self.weight.grad, cache.ids, dy)
