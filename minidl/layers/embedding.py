"""Embedding: a table with one row per id."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from .. import backend, checks, initializers
from ..backend import Array, Rng
from ..kernels import load_cuda
from ..kernels.cpu import embedding as cpu
from ..kernels.cpu.workspace import empty
from ..layer import Layer
from ..parameter import create
from ..sequences import AnyPacking, RowsById


class EmbeddingCache(NamedTuple):
    """What backward needs."""

    ids: Array  # (N,)
    order: RowsById | None  # on a device, if the host sorted the ids


class Embedding(Layer):
    """y[n] = weight[ids[n]].

    weight (num_embeddings, embedding_dim) starts as N(0, 1). ids (N,) are integers in [0, num_embeddings);
    y is (N, embedding_dim). Ids from the host are checked (IndexError). Ids on a GPU are checked by the order
    that `pack` computed on the host, if packing has it, which also speeds up the gradient; else they are trusted.
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

    def forward(self, x: Array, packing: AnyPacking | None = None) -> tuple[Array, EmbeddingCache]:
        weight = self.weight.data
        if backend.is_device(weight):
            ids, order = load_cuda("embedding").checked(x, packing.order if packing is not None else None, weight)
            return weight[ids], EmbeddingCache(ids, order)
        return self(x), EmbeddingCache(np.asarray(x), None)

    def __call__(self, x: Array, packing: AnyPacking | None = None) -> Array:
        weight = self.weight.data
        if backend.is_device(x) and packing is not None and packing.order is not None:
            x, _ = load_cuda("embedding").checked(x, packing.order, weight)
        ids = checks.ids("ids", x, self.num_embeddings, like=weight)
        if backend.is_device(weight):
            return weight[ids]
        y = empty((len(ids), self.embedding_dim), weight)
        # ids are known to be in range; with "clip" NumPy writes into `out` directly
        return np.take(weight, ids, axis=0, out=y, mode="clip")

    def backward(self, dy: Array, cache: EmbeddingCache) -> None:
        """dL/dweight[v] = the sum of dy[n] over all n with ids[n] = v. Ids have no gradient: returns None."""
        checks.cache(cache, EmbeddingCache)
        checks.matrix("dy", dy, self.embedding_dim, like=self.weight.data, rows=len(cache.ids))
        if backend.is_device(self.weight.grad):
            load_cuda("embedding").add_rows(self.weight.grad, cache.ids, dy, cache.order)
        else:
            cpu.add_rows(self.weight.grad, cache.ids, dy)
