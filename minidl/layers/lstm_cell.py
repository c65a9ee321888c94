"""The elementwise part of an LSTM's time step, forward and backward, in place.

    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

Gates are (4, n, H), n rows of H units each, in the order i, f, g, o. docs/lstm-gradients.md derives every line.
"""

from __future__ import annotations

import functools

import numpy as np


def cell_forward(z: np.ndarray, c_before: np.ndarray, c: np.ndarray, h: np.ndarray) -> None:
    """One time step: z (4, n, H) becomes the gates i, f, g, o in place; c and h (n, H) receive c_t and h_t.

    c_before (n, H) is c_{t-1}; h_{t-1} is in z already. z_i, z_f and z_o come halved, because
    sigmoid(z) = (1 + tanh(z / 2)) / 2, which cannot overflow.
    """
    half, rest = halves(z.dtype)
    np.tanh(z, out=z)
    z *= half
    z += rest
    i, f, g, o = z
    np.multiply(i, g, out=h)  # h is scratch until the last lines
    np.multiply(f, c_before, out=c)
    c += h
    np.tanh(c, out=h)
    h *= o


@functools.cache
def halves(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(0.5, 0.5, 1, 0.5) for the gates i, f, g, o, and 1 minus that, each (4, 1, 1)."""
    half = np.array([0.5, 0.5, 1, 0.5], dtype).reshape(4, 1, 1)
    return half, 1 - half


def cell_slopes(
    gates: np.ndarray, c_before: np.ndarray, c: np.ndarray, slopes: np.ndarray, dh_dc: np.ndarray, work: np.ndarray
) -> None:
    """The derivatives of c_t and h_t, for one time step or for many at once: no row needs another.

    Reads gates (4, n, H), c_before and c (n, H), which are c_{t-1} and c_t. slopes (4, n, H) receives dc_t/dz_i,
    dc_t/dz_f, dc_t/dz_g and dh_t/dz_o (o acts on h_t alone), dh_dc (n, H) receives dh_t/dc_t: all elementwise.
    work (n, H) is scratch.

    sigmoid' = s (1 - s) and tanh' = 1 - g^2 follow from the activations themselves.
    """
    i, f, g, o = gates
    by_i, by_f, by_g, by_o = slopes

    np.tanh(c, out=dh_dc)
    np.multiply(o, dh_dc, out=by_o)
    dh_dc *= by_o
    np.subtract(o, dh_dc, out=dh_dc)  # dh/dc = o (1 - tanh(c)^2)
    by_o -= np.multiply(by_o, o, out=work)  # dh/dz_o = tanh(c) o (1 - o)

    np.multiply(i, g, out=by_i)
    np.multiply(by_i, g, out=by_g)
    np.subtract(i, by_g, out=by_g)  # dc/dz_g = i (1 - g^2)
    by_i -= np.multiply(by_i, i, out=work)  # dc/dz_i = g i (1 - i)

    np.multiply(f, c_before, out=by_f)
    by_f -= np.multiply(by_f, f, out=work)  # dc/dz_f = c_{t-1} f (1 - f)


def cell_backward(slopes: np.ndarray, dh_dc: np.ndarray, f: np.ndarray, dh: np.ndarray, dc: np.ndarray) -> None:
    """The gradient of one time step, by the chain rule: slopes (4, n, H) becomes dL/dz_t in place.

    slopes and dh_dc (n, H) come from `cell_slopes`, f (n, H) is the forget gate, dh (n, H) is dL/dh_t. dc (n, H)
    comes in as the part of dL/dc_t that flows back from step t+1, and goes out as dL/dc_{t-1}. dh_dc is used up.
    """
    dh_dc *= dh
    dc += dh_dc  # dL/dc_t = what came from t+1, plus dL/dh_t dh_t/dc_t
    slopes[:3] *= dc  # dL/dz_i, dL/dz_f, dL/dz_g
    slopes[3] *= dh  # dL/dz_o
    dc *= f  # dL/dc_{t-1}: the road that skips all weights
