"""Learning-rate schedules: call `step()` after each optimizer step to set `optimizer.lr`.

Each is a function of the step number only, `rate(step)`, so a resumed run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from . import checks
from .backend import Array
from .optimizers import Optimizer
from .parameter import describe


class Schedule:
    """Counts steps and sets `optimizer.lr` to `rate(steps)`, starting immediately."""

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.lr = optimizer.lr
        self.steps = 0
        optimizer.lr = self.rate(0)

    def __repr__(self) -> str:
        return describe(self, steps=vars(self).get("steps"))

    def rate(self, step: int) -> float:
        raise NotImplementedError(f"{type(self).__name__}.rate")

    def step(self) -> None:
        self.steps += 1
        self.optimizer.lr = self.rate(self.steps)

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"steps": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64)}

    def load_state_dict(self, tensors: Mapping[str, Array]) -> None:
        host = checks.state_dict(self, tensors, {"steps": (), "lr": ()}, integers=["steps"])
        steps, lr = checks.integer("steps", int(host["steps"]), 0), checks.number("lr", float(host["lr"]), 0.0)
        self.steps, self.lr = steps, lr
        self.optimizer.lr = self.rate(self.steps)


class Constant(Schedule):
    """The optimizer's own learning rate, after a linear rise over `warmup` steps."""

    def __init__(self, optimizer: Optimizer, warmup: int = 0) -> None:
        self.warmup = checks.integer("warmup", warmup, 0)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.lr * min(1.0, (step + 1) / (self.warmup + 1))


class ExponentialDecay(Schedule):
    """lr gamma^step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = checks.number("gamma", gamma, 0.0, open_low=True)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.lr * self.gamma**step


class StepDecay(Schedule):
    """lr gamma^(step // every): multiplied by gamma once every `every` steps."""

    def __init__(self, optimizer: Optimizer, every: int, gamma: float = 0.1) -> None:
        self.every = checks.size("every", every)
        self.gamma = checks.number("gamma", gamma, 0.0, open_low=True)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.lr * self.gamma ** (step // self.every)


class OneCycle(Schedule):
    """One rise and one fall: from max_lr / 25 to max_lr over the share `warmup` of `total_steps` (PyTorch's pct_start),
    then to max_lr / 10,000, both along half a cosine (Smith & Topin 2018). After total_steps the rate stays there.
    """

    def __init__(self, optimizer: Optimizer, max_lr: float, total_steps: int, warmup: float = 0.1) -> None:
        self.max_lr = checks.number("max_lr", max_lr, 0.0, open_low=True)
        self.total_steps = checks.size("total_steps", total_steps)
        self.warmup = checks.number("warmup", warmup, 0.0, 1.0)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        peak = self.warmup * self.total_steps
        if step < peak:
            return _cosine(self.max_lr / 25, self.max_lr, step / peak)
        return _cosine(self.max_lr, self.max_lr / 1e4, min(1.0, (step - peak) / (self.total_steps - peak)))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
