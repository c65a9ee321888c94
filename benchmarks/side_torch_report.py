"""The report's experiment in PyTorch, as a user would write it: model, epoch, and the losses on its test part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from corpus.tasks import Batch

EMBEDDING, HIDDEN, LR = 128, 256, 0.005

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, targets, True where not a pad: (steps, batch)


class ReportModel(nn.Module):
    """Initialised like the report's: LSTM weights Xavier-uniform, its biases zero, the rest PyTorch's defaults."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN)
        self.head = nn.Linear(HIDDEN, vocabulary)
        for parameter in self.lstm.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LR, fused=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (steps, batch, vocabulary) of ids (steps, batch)."""
        return self.head(self.lstm(self.embedding(inputs))[0])

    def train_epoch(self, batches: Sequence[Rows]) -> None:
        for inputs, targets, _ in batches:
            self.optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(self(inputs).flatten(0, 1), targets.flatten()).backward()
            self.optimizer.step()

    @torch.inference_mode()
    def losses(self, batches: Sequence[Rows]) -> tuple[float, float]:
        """Nats per place, pads included, and per real target."""
        places = pads_too = targets_real = real_nats = 0.0
        for inputs, targets, real in batches:
            nats = functional.cross_entropy(self(inputs).flatten(0, 1), targets.flatten(), reduction="none")
            places, pads_too = places + nats.numel(), pads_too + nats.sum().item()
            targets_real += real.sum().item()
            real_nats += nats[real.flatten()].sum().item()
        return pads_too / places, real_nats / targets_real


def rows_of(batch: Batch) -> Rows:
    """The report's batch, in which every row has all steps."""
    shape = len(batch.packing.batch_sizes), batch.packing.batch_sizes[0]
    inputs, targets, real = (
        torch.from_numpy(part).reshape(shape) for part in (batch.inputs, batch.targets, batch.real)
    )
    return inputs.long(), targets.long(), real
