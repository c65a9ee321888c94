"""The model in JAX, compiled as one function, and its training step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from sizes import Size, batches, weights

Weights = dict[str, jax.Array]


def loss_of(params: Weights, inputs: jax.Array, targets: jax.Array, layers: int) -> jax.Array:
    """Mean cross-entropy in nats of `targets` (steps, batch) given `inputs` (steps, batch)."""
    x = params["embedding"][inputs]
    for layer in range(layers):
        weight_hh = params[f"weight_hh{layer}"]
        projected = x @ params[f"weight_ih{layer}"].T + params[f"bias{layer}"]  # all steps in one product

        def cell(state: tuple[jax.Array, ...], z: jax.Array, weight_hh: jax.Array = weight_hh) -> tuple[Any, jax.Array]:
            h, c = state
            i, f, g, o = jnp.split(z + h @ weight_hh.T, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((inputs.shape[1], weight_hh.shape[1]), jnp.float32)
        _, x = jax.lax.scan(cell, (zeros, zeros), projected)
    logits = x @ params["head"].T + params["head_bias"]
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - picked).mean()


def adam(params: Weights, grads: Weights, state: Any, lr: float) -> tuple[Weights, Any]:
    means, squares, steps = state
    steps = steps + 1
    means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, grads)
    squares = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, squares, grads)
    rate, root = lr / (1 - 0.9**steps), jnp.sqrt(1 - 0.999**steps)
    new = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), params, means, squares)
    return new, (means, squares, steps)


def sgd(params: Weights, grads: Weights, state: Any, lr: float) -> tuple[Weights, Any]:
    return jax.tree.map(lambda p, g: p - lr * g, params, grads), state


def training_step(size: Size) -> Callable[[], float]:
    """A function that trains one step and returns the loss before it."""
    params = {name: jnp.asarray(values) for name, values in weights(size).items()}
    rule, state = sgd, ()
    if size.optimizer == "adam":
        rule, state = adam, (*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)), jnp.zeros(()))
    turns = itertools.cycle([(jnp.asarray(i), jnp.asarray(t)) for i, t in batches(size)])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Weights, state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Weights, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets, size.layers)
        return *rule(params, grads, state, size.lr), loss

    def step() -> float:
        nonlocal params, state
        params, state, loss = jax.block_until_ready(update(params, state, *next(turns)))
        return float(loss)

    return step
