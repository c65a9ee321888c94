"""PoemModel: an embedding, one or more LSTMs and the projection to the vocabulary; and its file format."""

from __future__ import annotations

import os
from itertools import chain, pairwise
from typing import Any, NamedTuple

from corpus.tasks import Batch
from corpus.vocabulary import Vocabulary

import numpy as np

import minidl
from minidl import checks
from minidl.backend import Array, Rng
from minidl.layers.lstm import State as LSTMState
from minidl.sequences import place

State = list[LSTMState]  # one per LSTM, the lowest first


class Nats(NamedTuple):
    """Summed cross-entropy in nats, over real targets and over pads."""

    real: Array
    pads: Array | float = 0.0


class PoemModel(minidl.Layer):
    """ids -> embedding -> `layers` times (dropout -> LSTM) -> dropout -> logits over the vocabulary.

    `tied`: the embedding's table is also the projection's weight (Press & Wolf 2017), so `embedding_size` must equal
    `hidden_size`. A tied table is scaled by 1 / sqrt(hidden_size) to keep the first logits small; the first LSTM's
    input weights are scaled up by the same factor to compensate. Forget-gate biases then start at 1.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int = 128,
        hidden_size: int = 256,
        dropout: float = 0.0,
        tied: bool = False,
        layers: int = 1,
        *,
        backend: str = "numpy",
        rng: Rng = None,
    ) -> None:
        rng = np.random.default_rng(rng)
        if tied and embedding_size != hidden_size:
            raise ValueError(f"embedding_size must be hidden_size = {hidden_size} if tied, got {embedding_size}")
        self.settings = {
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "dropout": dropout,
            "tied": tied,
            "layers": layers,
        }
        self.embedding = minidl.Embedding(vocabulary_size, embedding_size, backend=backend, rng=rng)
        sizes = [embedding_size] + [hidden_size] * layers
        self.lstms = [minidl.LSTM(*pair, backend=backend, rng=rng) for pair in pairwise(sizes)]
        shared = self.embedding.weight if tied else None
        self.head = minidl.LinearCrossEntropy(hidden_size, vocabulary_size, shared, backend=backend, rng=rng)
        if tied:
            self.embedding.weight.data[...] *= hidden_size**-0.5
            self.lstms[0].weight_ih.data[...] *= hidden_size**0.5
            for lstm in self.lstms:
                lstm.bias.data[hidden_size : 2 * hidden_size] = 1
        self.dropouts = [minidl.Dropout(dropout, rng=rng) for _ in sizes]

    @property
    def body(self) -> minidl.Sequential:
        """All layers below the head: ids (N,) to its input rows (N, H)."""
        *below, last = self.dropouts
        return minidl.Sequential(self.embedding, *chain(*zip(below, self.lstms, strict=True)), last)

    def forward_backward(self, batch: Batch, step: int) -> Nats:
        """The batch's nats; adds the gradient of their sum divided by N, or by `batch.total`, to every parameter's."""
        inputs, packing, targets, rows = self._placed(batch)
        body = self.body
        h, caches = body.forward(inputs, packing._replace(step=step))
        nats, dh = self._head_forward_backward(h, targets, rows, batch.total or len(h))
        body.backward(dh, caches)
        return nats

    def _head_forward_backward(
        self, h: Array, targets: list[Array], rows: list[Array], total: int
    ) -> tuple[Nats, Array]:
        if not rows:
            loss, dh = self.head.forward_backward(h, targets[0], total)
            return Nats(loss * total), dh
        dh, nats = minidl.backend.of(h).empty_like(h), []
        # separately, so that each has its own sum; the gradient is the same
        for some, wanted in zip(rows, targets, strict=True):
            loss, dh[some] = self.head.forward_backward(h[some], wanted, total)
            nats.append(loss * total)
        return Nats(*nats), dh

    def nats(self, batch: Batch) -> Nats:
        """The batch's nats without dropout and without a gradient."""
        inputs, packing, targets, rows = self._placed(batch)
        h = self.body(inputs, packing)
        parts = [h[some] for some in rows] or [h]
        return Nats(*(self.head(part, wanted, total=1) for part, wanted in zip(parts, targets, strict=True)))

    def _placed(self, batch: Batch) -> tuple[Array, minidl.Packing, list[Array], list[Array]]:
        """A batch on the model's device: inputs, packing, targets, rows.

        `targets` and `rows` are those of real targets and of pads; without pads there is one `targets`, and no `rows`.
        """
        rows = [] if batch.real is None else _rows_of(batch.real)
        targets = [batch.targets[some] for some in rows] or [batch.targets]
        order, (inputs, *there) = place(batch.inputs, *targets, *rows, like=self.embedding.weight.data)
        return inputs, batch.packing._replace(order=order), there[: len(targets)], there[len(targets) :]

    def next_logits(self, ids: np.ndarray, state: State | None) -> tuple[Array, State]:
        """One step of writing: from the latest ids (B,) and the state to the logits (B, V) of the next ids."""
        x, after = self.embedding(ids), []
        for layer, lstm in enumerate(self.lstms):
            after.append(lstm.step(x, state[layer] if state else None))
            x = after[-1][0]
        return self.head.logits(x), after


def _rows_of(real: np.ndarray) -> list[np.ndarray]:
    """The rows of real targets (never empty), and the rows of pads if there are any."""
    return [rows for rows in (np.flatnonzero(real), np.flatnonzero(~real)) if len(rows)]


def save_model(path: str | os.PathLike[str], model: PoemModel, vocabulary: Vocabulary, **extra: Any) -> None:
    """Save the weights, with the vocabulary, the sizes and JSON values `extra` as metadata."""
    metadata = {"kind": "poem model", "settings": model.settings, "tokens": vocabulary.tokens, **extra}
    minidl.save(path, model.state_dict(), metadata)


def load_model(path: str | os.PathLike[str], backend: str = "numpy") -> tuple[PoemModel, Vocabulary, dict[str, Any]]:
    """(model, vocabulary, metadata) from a file that `save_model` wrote; CheckpointError if it is something else."""
    tensors, metadata = minidl.load(path)
    try:
        if not isinstance(metadata.get("max_length", 1), int) or metadata.get("max_length", 1) < 1:
            raise ValueError(f"its max_length is {metadata['max_length']!r}")
        if not isinstance(metadata["tokens"], list):  # the keys of an object may be reordered
            raise TypeError(f"its tokens must be a list, got {type(metadata['tokens']).__name__}")
        vocabulary = Vocabulary(metadata["tokens"])
        claimed, found = _weights(len(vocabulary), **metadata["settings"]), sum(a.size for a in tensors.values())
        if claimed > found:  # checked before memory is allocated for them
            raise ValueError(f"it has {found} weights, but its vocabulary and settings need {claimed}")
        model = PoemModel(len(vocabulary), **metadata["settings"], backend=backend, rng=0)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        fault = " ".join(str(error).split())[:300]
        raise minidl.CheckpointError(f"{path}: a checkpoint, but not a poem model ({fault})") from error
    return model, vocabulary, metadata


def _weights(
    vocabulary_size: int, embedding_size: int, hidden_size: int, dropout: float, tied: bool = False, layers: int = 1
) -> int:
    """The number of weights of a PoemModel with these settings."""
    V, E = vocabulary_size, checks.size("embedding_size", embedding_size)
    H, L = checks.size("hidden_size", hidden_size), checks.size("layers", layers)
    return V * (E + 1 + (0 if tied else H)) + 4 * H * (E + H * (2 * L - 1) + L)
