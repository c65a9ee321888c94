"""The three language models that are trained, their initial weights and their data: the same for all sides."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import harness
import numpy as np

BATCHES = 4  # taken in turn: the model would soon memorise a single one, and its softmax would be all zeros


class Size(NamedTuple):
    """Embedding, `layers` LSTM layers and a projection to the vocabulary, trained on `batch` x `steps` ids."""

    vocabulary: int
    embedding: int
    hidden: int
    layers: int
    batch: int
    steps: int
    optimizer: str
    lr: float

    def inputs(self) -> list[int]:
        """The size of each LSTM layer's input."""
        return [self.embedding, *[self.hidden] * (self.layers - 1)]


MODELS = {
    "report": Size(3602, 128, 256, 1, 256, 50, "adam", 0.005),
    "char": Size(87, 128, 128, 1, 100, 50, "adam", 0.005),
    "word": Size(10_000, 200, 200, 2, 20, 20, "sgd", 1.0),
}
CHANGEABLE = ("vocabulary", "embedding", "hidden", "batch", "steps")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, and an option for each of its sizes."""
    parser.add_argument("--model", choices=list(MODELS), default="report", help="the sizes (default: report)")
    for name in CHANGEABLE:
        parser.add_argument(f"--{name}", type=harness.whole, help=f"override the model's {name} size or number")


def chosen(args: argparse.Namespace) -> Size:
    changes = {name: getattr(args, name) for name in CHANGEABLE if getattr(args, name)}
    return MODELS[args.model]._replace(**changes)


def weights(size: Size) -> dict[str, np.ndarray]:
    """float32 weights by name: embedding, weight_ih0, weight_hh0, bias0, ..., head, head_bias."""
    rng, H = np.random.default_rng(0), size.hidden

    def uniform(*shape: int) -> np.ndarray:
        return (rng.random(shape, np.float32) * 2 - 1) / np.float32(H**0.5)

    made = {"embedding": rng.standard_normal((size.vocabulary, size.embedding), np.float32)}
    for layer, inputs in enumerate(size.inputs()):
        made[f"weight_ih{layer}"] = uniform(4 * H, inputs)
        made[f"weight_hh{layer}"] = uniform(4 * H, H)
        made[f"bias{layer}"] = uniform(4 * H)
    return {**made, "head": uniform(size.vocabulary, H), "head_bias": uniform(size.vocabulary)}


def batches(size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random inputs and targets, each (steps, batch) int64: time-major, which suits every side best."""
    ids = np.random.default_rng(1).integers(size.vocabulary, size=(BATCHES, 2, size.steps, size.batch))
    return [(inputs, targets) for inputs, targets in ids]
