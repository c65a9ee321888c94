"""What all optimizers share.

Every rule is elementwise, so it runs over the flat buffer that all parameters share (see `parameter`): in blocks that
fit a cache, or on CuPy as one kernel, made from the CUDA lines beside the rule. A gradient that is not finite is never
applied. On NumPy, FloatingPointError is raised before anything changes. On CuPy, where checking would stall the device,
the step does nothing and the error is raised when `minidl.to_host` next reads a value; until then it counts as a step
in Adam's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import backend, checks
from .backend import Array
from .kernels import load_cuda
from .kernels.cpu import optimizers as cpu
from .parameter import Parameter, check_parameters, describe, flat_views, flatten, layout


class Optimizer:
    """What all optimizers share: the flat buffer, the step count, the state arrays and their checkpoint.

    A rule consists of `_update` in NumPy, the arrays in `state_names`, and its `_numbers`. `cuda_rule` is the same rule
    in CUDA; without it a rule takes several launches on a GPU.
    """

    state_names: tuple[str, ...] = ()
    cuda_rule: tuple[str, str] = ("", "")  # the kernel's name and its lines, which update data[k] and the states from g

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
        if self._skipped is not None:  # a copy must be watched as well
            backend.watch(self)

    def __repr__(self) -> str:
        return describe(self, vars(self).get("params", ()), steps=vars(self).get("steps"))

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for view in flat_views(self.params):
            if backend.is_device(view.grad):
                view.grad.data.memset_async(0, view.grad.nbytes)
            else:
                view.grad.fill(0)

    def step(self) -> None:
        """Update the parameters once from their gradients."""
        lr = checks.number("lr", self.lr, 0.0)
        state = self.state.values()
        pieces = [
            (piece.data, piece.grad, *(flat[piece.start : piece.start + piece.data.size] for flat in state))
            for piece in flat_views(self.params)
        ]
        if self._skipped is not None:
            self._step_on_device(pieces, lr)
            return
        require_finite_grad(self.params)
        self.steps += 1  # before the rule: Adam's t starts at 1
        numbers = SimpleNamespace(**self._numbers(lr))
        for arrays in pieces:
            cpu.apply(partial(self._update, numbers), *arrays)

    def _numbers(self, lr: float) -> dict[str, float]:
        """The numbers that the rule uses in this step, with the same names as in CUDA."""
        return {"lr": lr}

    def _update(self, n: Any, data: Array, grad: Array, *state: Array) -> None:
        """The rule: update `data` and `state` in place from `grad`, all of one shape; `n.lr` is the number lr."""
        raise NotImplementedError(f"{type(self).__name__}._update")

    def kernel(self) -> Any:
        """The rule as one kernel, or None if its class has no lines of its own: its rule may differ from its base's."""
        if "cuda_rule" not in vars(type(self)):
            return None
        return load_cuda("optimizers").rule(*self.cuda_rule, tuple(self.state_names), tuple(self._numbers(self.lr)))

    def _step_on_device(self, pieces: list[tuple[Array, ...]], lr: float) -> None:
        self.steps += 1
        numbers, kernel = self._numbers(lr), self.kernel()
        if kernel is not None:
            load_cuda("optimizers").step(kernel, list(numbers.values()), pieces, self._skipped)
            return
        # The host cannot know whether the gradients are finite, so the device itself undoes the step.
        xp = backend.of(pieces[0][0])
        finite = xp.stack([xp.isfinite(grad).all() for _, grad, *_ in pieces]).all()
        for data, grad, *state in pieces:
            before = [array.copy() for array in (data, *state)]
            self._update(SimpleNamespace(**numbers), data, grad, *state)
            for array, old in zip((data, *state), before, strict=True):
                xp.copyto(array, old, where=~finite)
        self._skipped += ~finite

    def raise_found(self) -> None:
        """Raise FloatingPointError if steps were skipped on the device since the last check."""
        if self._skipped is None:
            return
        skipped = int(self._skipped)
        if skipped:
            self._skipped[...] = 0
            self.steps -= skipped
            raise FloatingPointError(f"a gradient was not finite: {skipped} optimizer step(s) were skipped")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Host copies of everything a resumed run needs: "steps", "lr", and "<state>.<parameter's number>"."""
        self.raise_found()
        tensors = {"steps": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64)}
        for name, flat in self.state.items():
            host = backend.to_host(flat)
            for index, (parameter, offset) in enumerate(self._places()):
                place = slice(offset, offset + parameter.data.size)
                tensors[f"{name}.{index}"] = host[place].reshape(parameter.data.shape).copy()
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Array]) -> None:
        """Restore what `state_dict` returned; ValueError, and nothing changes, if it is from another optimizer."""
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
            self._skipped[...] = 0  # earlier skipped steps are not part of the loaded run

    def _places(self) -> list[tuple[Parameter, int]]:
        return list(zip(self.params, layout(self.params)[0], strict=True))


def require_finite_grad(params: Sequence[Parameter]) -> None:
    """FloatingPointError, naming the first parameter whose gradient is not finite (NumPy only)."""
    # One product per view checks all of it; only if that overflows are the parameters checked one by one.
    if all(math.isfinite(cpu.square(view.grad)) for view in flat_views(params)):
        return
    for parameter in params:
        if not np.isfinite(parameter.grad).all():
            raise FloatingPointError(
                f"the gradient of {parameter.name} {parameter.grad.shape} is not finite; nothing was changed"
            )
