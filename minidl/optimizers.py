"""Optimizers, by PyTorch's definitions, and clip_grad_norm.

Every rule is elementwise, so it runs over the flat buffer that all parameters share (see `parameter`): in
blocks that stay in a cache, or on CuPy in one kernel (see `kernels.optimizers`). A gradient that is not finite
is never applied: on NumPy FloatingPointError is raised before anything changes; on CuPy, where looking would
stall the device, the step does nothing there and the error comes with the next value that `minidl.to_host` reads.
Until then it counts as a step in Adam's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import backend, checks, threads
from .backend import Array
from .parameter import Parameter, check_parameters, describe, flatten, layout, segments

LEAST = 2**18  # elements that are worth a thread
BLOCK = 2**18  # elements: few enough for a cache, many enough that calls cost little


class Optimizer:
    """What all optimizers share: the flat buffer, the step count, the state arrays and their checkpoint."""

    state_names: tuple[str, ...] = ()

    def __init__(self, params: Sequence[Parameter], lr: float) -> None:
        self.params = check_parameters(params)
        self.lr = checks.number("lr", lr, 0.0)
        self.steps = 0
        flatten(self.params)
        data = self.params[0].data
        xp, length = backend.of(data), layout(self.params)[1]
        self.state = {name: xp.zeros(length, data.dtype) for name in self.state_names}
        self._skipped: Array | None = None if xp is np else xp.zeros((), np.int64)
        if self._skipped is not None:
            backend.watch(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._skipped is not None:  # a copy is to be heard as well
            backend.watch(self)

    def __repr__(self) -> str:
        return describe(self, vars(self).get("params", ()), steps=vars(self).get("steps"))

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for segment in segments(self.params):
            if backend.is_device(segment.grad):
                segment.grad.data.memset_async(0, segment.grad.nbytes)
                continue
            threads.run([partial(segment.grad[part].fill, 0) for part in _parts(segment.grad)])

    def step(self) -> None:
        """Change the parameters by their gradients, once."""
        lr = checks.number("lr", self.lr, 0.0)
        state = self.state.values()
        pieces = [
            (piece.data, piece.grad, *(flat[piece.start : piece.start + piece.data.size] for flat in state))
            for piece in segments(self.params)
        ]
        if self._skipped is not None:
            self._step_on_device(pieces, lr)
            return
        require_finite_grad(self.params)
        self.steps += 1  # before the rule: Adam's t starts at 1
        for arrays in pieces:
            threads.run([partial(self._update_part, lr, arrays, part) for part in _parts(arrays[0])])

    def _update_part(self, lr: float, arrays: tuple[Array, ...], part: slice) -> None:
        for start in range(part.start, part.stop, BLOCK):
            self._update(lr, *(array[start : min(start + BLOCK, part.stop)] for array in arrays))

    def _update(self, lr: float, data: Array, grad: Array, *state: Array) -> None:
        """The rule: change `data` and `state` in place by `grad`, all of one shape."""
        raise NotImplementedError(f"{type(self).__name__}._update")

    def _step_on_device(self, pieces: list[tuple[Array, ...]], lr: float) -> None:
        fused = _FUSED.get(type(self))  # not those of a subclass, whose rule may be another
        if fused is not None:
            from .kernels import optimizers as device

            self.steps += 1
            device.step(*fused(self, lr), pieces, self._skipped)
            return
        # The host cannot know whether the gradients are finite, so the device takes the step back itself.
        xp = backend.of(pieces[0][0])
        finite = xp.stack([xp.isfinite(grad).all() for _, grad, *_ in pieces]).all()
        self.steps += 1
        for data, grad, *state in pieces:
            before = [array.copy() for array in (data, *state)]
            self._update(lr, data, grad, *state)
            for array, old in zip((data, *state), before, strict=True):
                xp.copyto(array, old, where=~finite)
        self._skipped += ~finite

    def raise_found(self) -> None:
        """Raise FloatingPointError if steps were skipped on the device since the last look."""
        if self._skipped is None:
            return
        skipped = int(self._skipped)
        if skipped:
            self._skipped[...] = 0
            self.steps -= skipped
            raise FloatingPointError(f"a gradient was not finite: {skipped} optimizer step(s) were left out")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Host copies of all that a resumed run needs: "steps", "lr", and "<state>.<parameter's number>"."""
        self.raise_found()
        tensors = {"steps": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64)}
        for name, flat in self.state.items():
            host = backend.to_host(flat)
            for index, (parameter, offset) in enumerate(self._places()):
                place = slice(offset, offset + parameter.data.size)
                tensors[f"{name}.{index}"] = host[place].reshape(parameter.data.shape).copy()
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Array]) -> None:
        """Go on from what `state_dict` gave; ValueError, and nothing changed, if it is not of this optimizer."""
        shapes = {f"{name}.{i}": p.data.shape for name in self.state for i, p in enumerate(self.params)}
        host = checks.state_dict(self, tensors, {**shapes, "steps": (), "lr": ()}, integers=["steps"])
        for name in shapes:
            checks.fits(name, host[name], self.params[0].data.dtype)
        steps, lr = checks.integer("steps", int(host["steps"]), 0), checks.number("lr", float(host["lr"]), 0.0)
        for name, flat in self.state.items():
            for index, (parameter, offset) in enumerate(self._places()):
                values = host[f"{name}.{index}"].reshape(-1).astype(flat.dtype)
                flat[offset : offset + parameter.data.size] = backend.of(flat).asarray(values)
        self.steps, self.lr = steps, lr
        if self._skipped is not None:
            self._skipped[...] = 0  # what was skipped before is no part of the loaded run

    def _places(self) -> list[tuple[Parameter, int]]:
        return list(zip(self.params, layout(self.params)[0], strict=True))


class SGD(Optimizer):
    """v = momentum v + g;  p = p - lr v  (without momentum v is g)."""

    def __init__(self, params: Sequence[Parameter], lr: float, momentum: float = 0.0) -> None:
        self.momentum = checks.number("momentum", momentum, 0.0, 1.0)
        if momentum:
            self.state_names = ("momentum_buffer",)
        super().__init__(params, lr)

    def _update(self, lr: float, data: Array, grad: Array, *state: Array) -> None:
        if not state:
            data -= lr * grad
            return
        (velocity,) = state
        velocity *= self.momentum
        velocity += grad
        data -= lr * velocity


class AdaGrad(Optimizer):
    """s = s + g^2;  p = p - lr g / (sqrt(s) + eps)  (Duchi et al. 2011)."""

    state_names = ("sum",)

    def __init__(self, params: Sequence[Parameter], lr: float = 0.01, eps: float = 1e-10) -> None:
        self.eps = checks.number("eps", eps, 0.0, open_low=True)
        super().__init__(params, lr)

    def _update(self, lr: float, data: Array, grad: Array, *state: Array) -> None:
        (total,) = state
        total += grad * grad
        root = backend.of(data).sqrt(total)
        root += self.eps
        data -= lr * grad / root


class Adadelta(Optimizer):
    """s = rho s + (1 - rho) g^2;  d = g sqrt(u + eps) / sqrt(s + eps);  u = rho u + (1 - rho) d^2;  p = p - lr d.

    Source: Zeiler 2012, with PyTorch's learning rate.
    """

    state_names = ("square_avg", "acc_delta")

    def __init__(self, params: Sequence[Parameter], lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6) -> None:
        self.rho = checks.number("rho", rho, 0.0, 1.0)
        self.eps = checks.number("eps", eps, 0.0, open_low=True)
        super().__init__(params, lr)

    def _update(self, lr: float, data: Array, grad: Array, *state: Array) -> None:
        square, moved = state
        square *= self.rho
        square += (1 - self.rho) * grad * grad
        delta = grad * backend.of(data).sqrt((moved + self.eps) / (square + self.eps))
        moved *= self.rho
        moved += (1 - self.rho) * delta * delta
        data -= lr * delta


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - lr m' / (sqrt(v') + eps).

    m' = m / (1 - b1^t) and v' = v / (1 - b2^t) undo the start at zero; t counts steps (Kingma & Ba 2015).
    """

    state_names = ("exp_avg", "exp_avg_sq")

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

    def _update(self, lr: float, data: Array, grad: Array, *state: Array) -> None:
        mean, square = state
        beta1, beta2 = self.betas
        mean *= beta1
        mean += (1 - beta1) * grad
        square *= beta2
        square += (1 - beta2) * grad * grad
        root = backend.of(data).sqrt(square)
        root *= 1 / math.sqrt(1 - beta2**self.steps)
        root += self.eps
        change = mean / root
        change *= lr / (1 - beta1**self.steps)
        data -= change


class AdamW(Adam):
    """p = p - lr weight_decay p for all parameters, biases too; then Adam's rule  (Loshchilov & Hutter 2019)."""

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

    def _update(self, lr: float, data: Array, grad: Array, *state: Array) -> None:
        data *= 1 - lr * self.weight_decay
        super()._update(lr, data, grad, *state)


def _adam(o: Adam, lr: float, keep: float = 1.0) -> tuple[str, list[float]]:
    b1, b2 = o.betas
    return "adam", [keep, b1, 1 - b1, b2, 1 - b2, 1 / math.sqrt(1 - b2**o.steps), o.eps, lr / (1 - b1**o.steps)]


# On a device: the name of a rule's kernel, and its numbers in that kernel's order.
_FUSED: dict[type[Optimizer], Callable[[Any, float], tuple[str, list[float]]]] = {
    SGD: lambda o, lr: ("momentum", [lr, o.momentum]) if o.state else ("sgd", [lr]),
    AdaGrad: lambda o, lr: ("adagrad", [lr, o.eps]),
    Adadelta: lambda o, lr: ("adadelta", [lr, o.rho, 1 - o.rho, o.eps]),
    Adam: _adam,
    AdamW: lambda o, lr: _adam(o, lr, 1 - lr * o.weight_decay),
}


def clip_grad_norm(params: Sequence[Parameter], max_norm: float) -> Array:
    """Scale all gradients down together so that their common norm is at most `max_norm`; returns the norm before.

    A `max_norm` of inf changes nothing: that is how to watch the norm.
    A norm that is not finite raises FloatingPointError and changes nothing; on CuPy it travels on to the
    optimizer's step, which then does nothing (see the top of this file).
    """
    params = check_parameters(params)
    max_norm = checks.number("max_norm", max_norm, 0.0, open_low=True, infinite=True)
    grads = [segment.grad for segment in segments(params)]
    if backend.is_device(grads[0]):
        from .kernels import optimizers as device

        return device.clip_grad_norm(grads, max_norm)
    require_finite_grad(params)
    norm = math.sqrt(sum(_square(grad) for grad in grads))
    if math.isinf(norm):  # finite gradients whose squares overflow
        largest = max(float(abs(grad).max()) for grad in grads)
        norm = largest * math.sqrt(sum(float(np.dot(grad / largest, grad / largest)) for grad in grads))
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / (norm + 1e-6)
    return norm


def require_finite_grad(params: Sequence[Parameter]) -> None:
    """Raise FloatingPointError that names the first parameter whose gradient is not finite (NumPy only)."""
    # One product a segment answers for all; only when it overflows are the parameters looked at singly.
    if all(math.isfinite(_square(segment.grad)) for segment in segments(params)):
        return
    for parameter in params:
        if not np.isfinite(parameter.grad).all():
            raise FloatingPointError(
                f"the gradient of {parameter.name} {parameter.grad.shape} is not finite; nothing was changed"
            )


def _square(flat: np.ndarray) -> float:
    """The squared norm; infinite, without NumPy's warning, where a square overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = threads.run([partial(np.dot, flat[part], flat[part]) for part in _parts(flat)])
        return float(sum(squares))


def _parts(flat: Array) -> list[slice]:
    """A flat array cut for the threads."""
    return threads.split(flat.size, threads.worth(flat.size, LEAST, flat))
