"""Optimizers, by PyTorch's definitions, each rule beside its CUDA lines (see `optimizer`), and clip_grad_norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import backend, checks
from .backend import Array
from .kernels import load_cuda
from .kernels.cpu import optimizers as cpu
from .optimizer import Optimizer, require_finite_grad
from .parameter import Parameter, check_parameters, flat_views


class SGD(Optimizer):
    """v = momentum v + g;  p = p - lr v  (without momentum v is g)."""

    cuda_rule = "sgd", "data[k] -= lr * g;"

    def __init__(self, params: Sequence[Parameter], lr: float, momentum: float = 0.0) -> None:
        self.momentum = checks.number("momentum", momentum, 0.0, 1.0)
        if momentum:
            self.state_names = ("momentum_buffer",)
            if type(self) is SGD:  # a subclass gives its own
                self.cuda_rule = (
                    "momentum",
                    """
        momentum_buffer[k] = momentum * momentum_buffer[k] + g;
        data[k] -= lr * momentum_buffer[k];""",
                )
        super().__init__(params, lr)

    def _numbers(self, lr: float) -> dict[str, float]:
        return {"lr": lr, "momentum": self.momentum} if self.momentum else {"lr": lr}

    def _update(self, n: Any, data: Array, grad: Array, *state: Array) -> None:
        if not state:
            data -= n.lr * grad
            return
        (velocity,) = state
        velocity *= n.momentum
        velocity += grad
        data -= n.lr * velocity


class AdaGrad(Optimizer):
    """s = s + g^2;  p = p - lr g / (sqrt(s) + eps)  (Duchi et al. 2011)."""

    state_names = ("sum",)
    cuda_rule = (
        "adagrad",
        """
        sum[k] += g * g;
        data[k] -= lr * g / (sqrt(sum[k]) + eps);""",
    )

    def __init__(self, params: Sequence[Parameter], lr: float = 0.01, eps: float = 1e-10) -> None:
        self.eps = checks.number("eps", eps, 0.0, open_low=True)
        super().__init__(params, lr)

    def _numbers(self, lr: float) -> dict[str, float]:
        return {"lr": lr, "eps": self.eps}

    def _update(self, n: Any, data: Array, grad: Array, *state: Array) -> None:
        (total,) = state
        total += grad * grad
        root = backend.of(data).sqrt(total)
        root += n.eps
        data -= n.lr * grad / root


class Adadelta(Optimizer):
    """s = rho s + (1 - rho) g^2;  d = g sqrt(u + eps) / sqrt(s + eps);  u = rho u + (1 - rho) d^2;  p = p - lr d.

    Source: Zeiler 2012, with PyTorch's learning rate.
    """

    state_names = ("square_avg", "acc_delta")
    cuda_rule = (
        "adadelta",
        """
        square_avg[k] = rho * square_avg[k] + one_minus_rho * g * g;
        real delta = g * sqrt((acc_delta[k] + eps) / (square_avg[k] + eps));
        acc_delta[k] = rho * acc_delta[k] + one_minus_rho * delta * delta;
        data[k] -= lr * delta;""",
    )

    def __init__(self, params: Sequence[Parameter], lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6) -> None:
        self.rho = checks.number("rho", rho, 0.0, 1.0)
        self.eps = checks.number("eps", eps, 0.0, open_low=True)
        super().__init__(params, lr)

    def _numbers(self, lr: float) -> dict[str, float]:
        return {"lr": lr, "rho": self.rho, "one_minus_rho": 1 - self.rho, "eps": self.eps}

    def _update(self, n: Any, data: Array, grad: Array, *state: Array) -> None:
        square, moved = state
        square *= n.rho
        square += n.one_minus_rho * grad * grad
        delta = grad * backend.of(data).sqrt((moved + n.eps) / (square + n.eps))
        moved *= n.rho
        moved += n.one_minus_rho * delta * delta
        data -= n.lr * delta


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - lr m' / (sqrt(v') + eps).

    m' = m / (1 - b1^t) and v' = v / (1 - b2^t) undo the start at zero; t counts steps (Kingma & Ba 2015).
    """

    state_names = ("exp_avg", "exp_avg_sq")
    cuda_rule = (
        "adam",
        """
        exp_avg[k] = beta1 * exp_avg[k] + one_minus_beta1 * g;
        exp_avg_sq[k] = beta2 * exp_avg_sq[k] + one_minus_beta2 * g * g;
        data[k] -= exp_avg[k] / (sqrt(exp_avg_sq[k]) * root_scale + eps) * rate;""",
    )

    def __init__(
        self,
        params: Sequence[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas must be a pair, got {type(betas).__name__}")
        if len(betas) != 2:
            raise ValueError(f"betas must be a pair, got {len(betas)} values")
        self.betas = (checks.number("betas[0]", betas[0], 0.0, 1.0), checks.number("betas[1]", betas[1], 0.0, 1.0))
        self.eps = checks.number("eps", eps, 0.0, open_low=True)
        super().__init__(params, lr)

    def _numbers(self, lr: float) -> dict[str, float]:
        (beta1, beta2), t = self.betas, max(1, self.steps)
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "root_scale": 1 / math.sqrt(1 - beta2**t),
            "eps": self.eps,
            "rate": lr / (1 - beta1**t),
        }

    def _update(self, n: Any, data: Array, grad: Array, *state: Array) -> None:
        mean, square = state
        mean *= n.beta1
        mean += n.one_minus_beta1 * grad
        square *= n.beta2
        square += n.one_minus_beta2 * grad * grad
        root = backend.of(data).sqrt(square)
        root *= n.root_scale
        root += n.eps
        change = mean / root
        change *= n.rate
        data -= change


class AdamW(Adam):
    """p = p - lr weight_decay p for all parameters, biases too; then Adam's rule  (Loshchilov & Hutter 2019)."""

    cuda_rule = "adamw", "data[k] *= keep;" + Adam.cuda_rule[1]

    def __init__(
        self,
        params: Sequence[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self.weight_decay = checks.number("weight_decay", weight_decay, 0.0)
        super().__init__(params, lr, betas, eps)

    def _numbers(self, lr: float) -> dict[str, float]:
        return {"keep": 1 - lr * self.weight_decay, **super()._numbers(lr)}

    def _update(self, n: Any, data: Array, grad: Array, *state: Array) -> None:
        data *= n.keep
        super()._update(n, data, grad, *state)


def clip_grad_norm(params: Sequence[Parameter], max_norm: float) -> Array:
    """Scale all gradients down together so that their common norm is at most `max_norm`; returns the norm before.

    With max_norm=inf nothing changes: use it to monitor the norm.
    If the norm is not finite, FloatingPointError is raised and nothing changes; on CuPy the optimizer's step then does
    nothing (see `optimizer`).
    """
    params = check_parameters(params)
    max_norm = checks.number("max_norm", max_norm, 0.0, open_low=True, infinite=True)
    grads = [view.grad for view in flat_views(params)]
    if backend.is_device(grads[0]):
        return load_cuda("optimizers").clip_grad_norm(grads, max_norm)
    require_finite_grad(params)
    norm = cpu.norm(grads)
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / (norm + 1e-6)
    return norm
