"""Three ways to train on poems of different lengths in PyTorch: padded within the batch, packed, and in rows of 50."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from side_torch import Model
from sizes import Size
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

if TYPE_CHECKING:
    from corpus.tasks import Rows

IGNORED = -100  # cross_entropy's mark for a target that does not count
WIDTH = 50  # of the report's rows

Loss = Callable[[np.ndarray], torch.Tensor]  # of the poems with these indices


def training_step(way: str, rows: Rows, size: Size) -> Callable[[np.ndarray], float]:
    """A function that trains on the poems with these indices, and returns the loss before it."""
    model = Model(size)
    optimizer, loss_of = model.optimizer(size), WAYS[way](model, rows)

    def step(picked: np.ndarray) -> float:
        model.zero_grad(set_to_none=True)
        loss = loss_of(picked)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def poems_of(rows: Rows) -> list[torch.Tensor]:
    """Each poem's ids from its begin mark to its end mark."""
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    return [ids[start : start + length + 1] for start, length in zip(rows.starts, rows.lengths, strict=True)]


def padded(model: Model, rows: Rows) -> Loss:
    poems = poems_of(rows)

    def loss_of(picked: np.ndarray) -> torch.Tensor:
        inputs = pad_sequence([poems[index][:-1] for index in picked])
        targets = pad_sequence([poems[index][1:] for index in picked], padding_value=IGNORED)
        return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    return loss_of


def packed(model: Model, rows: Rows) -> Loss:
    poems = poems_of(rows)

    def loss_of(picked: np.ndarray) -> torch.Tensor:
        inputs = pack_sequence([poems[index][:-1] for index in picked], enforce_sorted=False)
        targets = pack_sequence([poems[index][1:] for index in picked], enforce_sorted=False)
        embedded = PackedSequence(model.embedding(inputs.data), *inputs[1:])
        return functional.cross_entropy(model.head(model.lstm(embedded)[0].data), targets.data)

    return loss_of


def report_rows(model: Model, rows: Rows) -> Loss:
    """The report's way: every poem is padded to 50 places, and pads are read and predicted like characters."""
    poems = poems_of(rows)
    inputs = torch.zeros((len(poems), WIDTH), dtype=torch.int64)  # any character as a pad costs the same
    targets = torch.zeros_like(inputs)
    for row, poem in enumerate(poems):
        inputs[row, : len(poem) - 1], targets[row, : len(poem) - 1] = poem[:-1], poem[1:]

    def loss_of(picked: np.ndarray) -> torch.Tensor:
        chosen = torch.from_numpy(picked)
        return functional.cross_entropy(model(inputs[chosen].T).flatten(0, 1), targets[chosen].T.flatten())

    return loss_of


WAYS = {"torch-padded": padded, "torch-packed": packed, "torch-rows": report_rows}
