"""Every layer, loss and optimizer written from its equations, number by number, in plain Python.

It shares nothing with minidl: sequences are lists, not packed rows; weights are read one by one; and there is no
backward code. A `Number` remembers what it was computed from, and `gradients` applies the chain rule to that record, so
only the forward equations are written down here.

Every Number also carries a bound on its rounding error, in units of the dtype's eps: the largest error of any sensible
order of the same operations in that dtype (a first-order running error analysis, see N. Higham, Accuracy and Stability
of Numerical Algorithms, ch. 3). So a test needs no tolerance of its own. In a sum of n terms each counts n times,
whatever the order; an activation counts 4, absolute, because minidl computes the sigmoid from a tanh near 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

_order = itertools.count()


class Number:
    """A float64 value, the parts it was computed from, and later its gradient; `error` and `grad_error` are bounds."""

    __slots__ = ("error", "grad", "grad_error", "grad_size", "grad_terms", "order", "parts", "value")

    def __init__(self, value: float, error: float = 0.0, parts: Sequence[tuple[Number, float, float]] = ()) -> None:
        self.value, self.error = float(value), error
        self.parts = parts  # (part, d self / d part, error bound of that derivative)
        self.order = next(_order)
        self.grad = self.grad_error = self.grad_size = 0.0
        self.grad_terms = 0

    def receive(self, gradient: float, error: float) -> None:
        self.grad += gradient
        self.grad_error += error + abs(gradient)
        self.grad_size += abs(gradient)
        self.grad_terms += 1

    def bound(self) -> float:
        """The bound on the gradient's error, including the rounding of its sum."""
        return self.grad_error + self.grad_terms * self.grad_size


def gradients(outputs: Iterable[tuple[Number, float]]) -> None:
    """The chain rule: dL/d(every part) from dL/d(every output)."""
    waiting: dict[int, Number] = {}
    for number, gradient in outputs:
        number.receive(gradient, 0.0)
        waiting[number.order] = number
    seen = dict(waiting)
    stack = list(waiting.values())
    while stack:
        for part, _, _ in stack.pop().parts:
            if part.order not in seen:
                seen[part.order] = part
                stack.append(part)
    for _, number in sorted(seen.items(), reverse=True):  # a part is always older than any Number computed from it
        bound = number.bound()
        for part, slope, error in number.parts:
            part.receive(slope * number.grad, abs(slope) * bound + error * abs(number.grad))


def dot(xs: Sequence[Number], weights: Sequence[Number], plus: Number | None = None) -> Number:
    """The sum of x w, plus a bias if given."""
    terms = [x.value * w.value for x, w in zip(xs, weights, strict=True)]
    error = sum(abs(w.value) * x.error + abs(x.value) * w.error for x, w in zip(xs, weights, strict=True))
    parts = [(x, w.value, w.error) for x, w in zip(xs, weights, strict=True)]
    parts += [(w, x.value, x.error) for x, w in zip(xs, weights, strict=True)]
    if plus is not None:
        terms.append(plus.value)
        error += plus.error
        parts.append((plus, 1.0, 0.0))
    return Number(math.fsum(terms), error + (len(terms) + 1) * math.fsum(map(abs, terms)), parts)


def add(a: Number, b: Number) -> Number:
    value = a.value + b.value
    return Number(value, a.error + b.error + abs(value), [(a, 1.0, 0.0), (b, 1.0, 0.0)])


def multiply(a: Number, b: Number) -> Number:
    value = a.value * b.value
    error = abs(a.value) * b.error + abs(b.value) * a.error + abs(value)
    return Number(value, error, [(a, b.value, b.error), (b, a.value, a.error)])


def sigmoid(z: Number) -> Number:
    e = math.exp(-abs(z.value))
    value = (1.0 if z.value >= 0 else e) / (1 + e)
    slope = value * (1 - value)
    error = slope * z.error + 4
    return Number(value, error, [(z, slope, error)])


def tanh(z: Number) -> Number:
    value = math.tanh(z.value)
    slope = 1 - value * value
    error = slope * z.error + 4
    return Number(value, error, [(z, slope, 2 * error)])


def numbers(array: np.ndarray) -> list[list[Number]]:
    return [[Number(value) for value in row] for row in np.atleast_2d(array)]


# The layers, on rows: lists of Numbers.


def embedding(table: list[list[Number]], ids: Iterable[int]) -> list[list[Number]]:
    return [table[number] for number in ids]


def linear(
    rows: list[list[Number]], weight: list[list[Number]], bias: list[Number] | None = None
) -> list[list[Number]]:
    return [[dot(x, w, bias[k] if bias else None) for k, w in enumerate(weight)] for x in rows]


def dropout(rows: list[list[Number]], kept: np.ndarray, p: float) -> list[list[Number]]:
    """`kept` is the mask of the numbers that are not dropped."""
    keep = Number(1 / (1 - p), 2 / (1 - p))
    zero = Number(0.0)
    return [
        [multiply(x, keep if k else zero) for x, k in zip(*row, strict=True)] for row in zip(rows, kept, strict=True)
    ]


Pair = tuple[list[Number], list[Number]]


def lstm(
    sequence: list[list[Number]],
    weight_ih: list[list[Number]],
    weight_hh: list[list[Number]],
    bias: list[Number],
    state: Pair,
) -> tuple[list[list[Number]], Pair]:
    """One sequence: h after every step, and the last (h, c). The weights are stacked in gate order i, f, g, o."""
    h, c = state
    hidden, outputs = len(h), []
    for x in sequence:
        new_h, new_c = [], []
        for unit in range(hidden):
            z = []
            for gate in range(4):
                row = gate * hidden + unit
                z.append(dot([*x, *h], [*weight_ih[row], *weight_hh[row]], bias[row]))
            i, f, g, o = sigmoid(z[0]), sigmoid(z[1]), tanh(z[2]), sigmoid(z[3])
            new_c.append(add(multiply(f, c[unit]), multiply(i, g)))
            new_h.append(multiply(o, tanh(new_c[-1])))
        h, c = new_h, new_c
        outputs.append(h)
    return outputs, (h, c)


def cross_entropy(logits: list[list[Number]], targets: Sequence[int], total: float) -> Number:
    """The sum over rows of log(sum_v exp z_v) - z_target, divided by total."""
    value, error, parts = 0.0, 0.0, []
    for z, target in zip(logits, targets, strict=True):
        top = max(number.value for number in z)
        e = [math.exp(number.value - top) for number in z]
        whole = math.fsum(e)
        value += math.log(whole) + (top - z[target].value)
        for v, number in enumerate(z):
            p = e[v] / whole
            slip = sum(e[w] / whole * z[w].error for w in range(len(z)))  # the error of the sum of exponentials
            # each term's error is the rounding of its exponent, at most |z| or |z - top|
            own = number.error + slip + abs(number.value) + abs(number.value - top) + len(z) + 4
            parts.append((number, (p - (v == target)) / total, (p * own + 4 * (v == target)) / total))
            error += (p + (v == target)) * number.error + p * (own - slip)
        error += abs(math.log(whole)) + 2 * abs(top) + abs(z[target].value) + 4
    return Number(value / total, (error + len(logits) * abs(value)) / total, parts)


# The optimizers, for one number; `size` bounds cancellation by summing absolute gradients.


class Sgd:
    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        self.lr, self.momentum, self.velocity, self.size = lr, momentum, 0.0, 0.0

    def change(self, g: float) -> tuple[float, float]:
        """(what is subtracted from p, the same computed from absolute gradients)."""
        self.velocity = self.momentum * self.velocity + g
        self.size = self.momentum * self.size + abs(g)
        return self.lr * self.velocity, self.lr * self.size


class AdaGrad:
    def __init__(self, lr: float, eps: float) -> None:
        self.lr, self.eps, self.squares = lr, eps, 0.0

    def change(self, g: float) -> tuple[float, float]:
        self.squares += g * g
        change = self.lr * g / (math.sqrt(self.squares) + self.eps)
        return change, abs(change)


class Adadelta:
    def __init__(self, lr: float, rho: float, eps: float) -> None:
        self.lr, self.rho, self.eps, self.squares, self.moved = lr, rho, eps, 0.0, 0.0

    def change(self, g: float) -> tuple[float, float]:
        self.squares = self.rho * self.squares + (1 - self.rho) * g * g
        delta = math.sqrt(self.moved + self.eps) / math.sqrt(self.squares + self.eps) * g
        self.moved = self.rho * self.moved + (1 - self.rho) * delta * delta
        return self.lr * delta, self.lr * abs(delta)


class Adam:
    def __init__(self, lr: float, betas: tuple[float, float], eps: float) -> None:
        self.lr, self.betas, self.eps, self.t = lr, betas, eps, 0
        self.mean = self.size = self.squares = 0.0

    def change(self, g: float) -> tuple[float, float]:
        b1, b2 = self.betas
        self.t += 1
        self.mean = b1 * self.mean + (1 - b1) * g
        self.size = b1 * self.size + (1 - b1) * abs(g)
        self.squares = b2 * self.squares + (1 - b2) * g * g
        rate = self.lr / (1 - b1**self.t) / (math.sqrt(self.squares / (1 - b2**self.t)) + self.eps)
        return rate * self.mean, rate * self.size


def norm(values: Iterable[float]) -> float:
    """For any length and size: hypot overflows or underflows only if its result does."""
    return math.hypot(*values)


def shares(logits: Sequence[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """The probabilities that `sample` uses for one row: softmax(z / T), the k likeliest, then the nucleus."""
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    falling = sorted(range(len(weights)), key=lambda v: -weights[v])
    kept = falling[:top_k]
    if top_p is not None and top_p < 1:
        whole, reached, nucleus = math.fsum(weights[v] for v in kept), 0.0, []
        for v in kept:
            nucleus.append(v)
            reached += weights[v]
            if reached >= top_p * whole:
                break
        kept = nucleus
    whole = math.fsum(weights[v] for v in kept)
    return [weights[v] / whole if v in kept else 0.0 for v in range(len(weights))]
