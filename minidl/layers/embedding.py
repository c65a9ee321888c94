"""Embedding: a table with one row per id."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import backend, checks, initializers
from ..backend import Array, Rng
from ..layer import Layer
from ..parameter import create
from ..workspace import empty


class EmbeddingCache(NamedTuple):
    """What backward needs."""

    ids: Array  # (N,)


class Embedding(Layer):
    """y[n] = weight[ids[n]].

    weight (num_embeddings, embedding_dim) starts as N(0, 1). ids (N,) are integers in [0, num_embeddings);
    y is (N, embedding_dim). Ids from the host are checked (IndexError); ids already on a GPU are trusted.
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
        values = initializers.normal((self.num_embeddings, self.embedding_dim), rng=rng)
        self.weight = create("Embedding.weight", values, dtype, backend)

    def forward(self, ids: Array) -> tuple[Array, EmbeddingCache]:
        weight = self.weight.data
        ids = checks.ids("ids", ids, self.num_embeddings, like=weight)
        if backend.is_device(weight):
            return weight[ids], EmbeddingCache(ids)
        y = empty((len(ids), self.embedding_dim), weight)
        # ids are in range by now; with "clip" NumPy writes into `out` at once
        return np.take(weight, ids, axis=0, out=y, mode="clip"), EmbeddingCache(ids)

    def __call__(self, ids: Array) -> Array:
        # at once, and not by way of the base's search for a Dropout: this is called for every character written
        return self.forward(ids)[0]

    def backward(self, dy: Array, cache: EmbeddingCache) -> None:
        """dL/dweight[v] = the sum of dy[n] over all n with ids[n] = v. Ids have no gradient: returns None."""
        checks.matrix("dy", dy, self.embedding_dim, like=self.weight.data, rows=len(cache.ids))
        backend.add_rows(self.weight.grad, cache.ids, dy)
