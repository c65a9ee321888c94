"""Metrics of a test part, from running sums, so that no figures of single poems need to be kept."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Sums:
    """Sums over batches, each with n nats and t targets: of n, t, n^2, n t and t^2."""

    batches: int = 0
    several: int = 0  # batches of more than one poem
    targets: int = 0
    nats: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    target_squares: float = 0.0

    def add(self, nats: float, targets: int, poems: int) -> None:
        self.batches += 1
        self.nats += nats
        self.targets += targets
        self.squares += nats * nats
        self.products += nats * targets
        self.target_squares += targets * targets
        self.several += poems > 1

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / self.targets

    def figures(self, part: str) -> dict[str, float]:
        """Loss, perplexity and number of targets."""
        figures = {f"{part}_loss": self.loss, f"{part}_perplexity": perplexity(self.loss)}
        return {**figures, f"{part}_targets": self.targets}

    def errors(self, part: str) -> dict[str, float]:
        """The standard errors of loss and perplexity, for the choice of test poems.

        The loss L is a ratio of sums over poems, so its error follows from the residuals n - L t, whose sum of squares
        is sum n^2 - 2 L sum n t + L^2 sum t^2. The effect of the seed is not included. Without at least two poems, or
        with several poems in a batch, there is no error.
        """
        if self.batches < 2 or self.several:
            return {}
        loss = self.loss
        residuals = self.squares - 2 * loss * self.products + loss * loss * self.target_squares
        variance = max(residuals, 0.0) * self.batches / (self.batches - 1)  # equal poems may round to slightly below 0
        error = math.sqrt(variance) / self.targets
        return {f"{part}_loss_error": error, f"{part}_perplexity_error": perplexity(loss) * error}


def perplexity(nats: float) -> float:
    return math.exp(min(nats, 700))  # e^709 is the largest float


def figures_text(figures: dict[str, float], part: str) -> str:
    value, error = figures[f"{part}_perplexity"], figures.get(f"{part}_perplexity_error")
    spread = "" if error is None else f" ± {short(error)}"
    return (
        f"{figures[f'{part}_loss']:.3f} nats/char (perplexity {short(value)}{spread}) "
        f"over {figures[f'{part}_targets']:,} targets"
    )


def short(perplexity: float) -> str:
    return f"{perplexity:.1f}" if perplexity < 1e6 else f"{perplexity:.1e}"
