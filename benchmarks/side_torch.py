"""The model in eager PyTorch, as a PyTorch user would write it, and its training step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from sizes import Size, batches, weights
from torch import nn
from torch.nn import functional


class Model(nn.Module):
    """Embedding, nn.LSTM and a projection, with the initial weights that all sides share."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.embedding)
        self.lstm = nn.LSTM(size.embedding, size.hidden, size.layers)
        self.head = nn.Linear(size.hidden, size.vocabulary)
        self.second_biases = [getattr(self.lstm, f"bias_hh_l{layer}") for layer in range(size.layers)]
        start = {name: torch.from_numpy(values) for name, values in weights(size).items()}
        with torch.no_grad():
            self.embedding.weight.copy_(start["embedding"])
            for layer, second in enumerate(self.second_biases):
                getattr(self.lstm, f"weight_ih_l{layer}").copy_(start[f"weight_ih{layer}"])
                getattr(self.lstm, f"weight_hh_l{layer}").copy_(start[f"weight_hh{layer}"])
                getattr(self.lstm, f"bias_ih_l{layer}").copy_(start[f"bias{layer}"])
                second.zero_()
            self.head.weight.copy_(start["head"])
            self.head.bias.copy_(start["head_bias"])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (steps, batch, vocabulary) of ids (steps, batch)."""
        return self.head(self.lstm(self.embedding(inputs))[0])

    def optimizer(self, size: Size) -> torch.optim.Optimizer:
        """Fused, for all but the second biases: if both were trained, their sum would learn at twice the rate."""
        left_out = {id(bias) for bias in self.second_biases}
        trained = [parameter for parameter in self.parameters() if id(parameter) not in left_out]
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        return kinds[size.optimizer](trained, lr=size.lr, fused=True)


def training_step(size: Size) -> Callable[[], float]:
    """A function that trains one step and returns the loss before it."""
    model = Model(size)
    optimizer = model.optimizer(size)
    turns = itertools.cycle([(torch.from_numpy(i), torch.from_numpy(t)) for i, t in batches(size)])

    def step() -> float:
        inputs, targets = next(turns)
        model.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
