"""Drawing ids from logits: temperature, top-k and top-p (nucleus) sampling."""

from __future__ import annotations

from functools import partial

import numpy as np

from . import backend, checks
from .backend import Array, Rng
from .kernels.cpu import cuts, threads


def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Rng = None,
) -> np.ndarray:
    """One id per row, drawn from softmax(logits / temperature): (N,) integers on the host.

    logits (N, V); -inf forbids an id. `top_k` keeps the k most probable ids of a row; then `top_p` keeps the smallest
    set of them whose probabilities sum to at least p (Holtzman et al. 2020). The id is drawn from what is left. Raises
    ValueError for a row without a finite logit, for NaN or +inf, and for arguments out of range.
    """
    temperature = checks.number("temperature", temperature, 0.0, open_low=True)
    if top_p is not None and not 0 < checks.number("top_p", top_p, 0.0) <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    try:
        logits = backend.to_host(logits)
    except TypeError as error:
        raise TypeError(f"logits: {error}") from None
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape (N, V) with N at least 1, got {logits.shape}")
    if logits.dtype.kind != "f":
        raise TypeError(f"logits must be floats, got {logits.dtype}")
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("logits contain NaN or +inf, or a row without a finite value to draw from")
    kept = logits.shape[1] if top_k is None else checks.size("top_k", top_k)
    draws = backend.generator(rng).random((len(logits), 1))
    parts = threads.split(len(logits), threads.cores_for(logits.size, cuts.DRAWS))
    tasks = [partial(_sample, logits[part], top[part], temperature, kept, top_p, draws[part]) for part in parts]
    # for a single part the overhead of `run` would exceed the work
    return np.concatenate(threads.run(tasks)) if len(tasks) > 1 else tasks[0]()


def _sample(
    logits: np.ndarray, top: np.ndarray, temperature: float, kept: int, top_p: float | None, draws: np.ndarray
) -> np.ndarray:
    weights = (logits - top).astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature leaves only the maximum, as it should
        weights /= temperature
    np.exp(weights, out=weights)
    if kept < logits.shape[1]:
        dropped = np.argpartition(weights, -kept, axis=1)[:, :-kept]
        np.put_along_axis(weights, dropped, 0.0, axis=1)
    if top_p is not None and top_p < 1:
        _keep_nucleus(weights, top_p)
    cumulative = np.cumsum(weights, axis=1)
    # For a draw u in [0, 1): the first id whose cumulative weight exceeds u times the sum.
    return (cumulative > draws * cumulative[:, -1:]).argmax(axis=1)


def _keep_nucleus(weights: np.ndarray, top_p: float) -> None:
    """Keep the fewest of the largest weights whose sum reaches the share top_p of their row; zero the others."""
    order = np.argsort(-weights, axis=1, kind="stable")
    ordered = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered  # the sum of the more probable ones
    ordered[before >= top_p * ordered.sum(axis=1, keepdims=True)] = 0.0
    np.put_along_axis(weights, order, ordered, axis=1)
