"""One time step of an LSTM, forward and backward: all of it that is elementwise, in place.

    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);   g = tanh(z_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

Arrays of gates are (4, n, H), in the order i, f, g, o. docs/lstm-gradients.md derives every line.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

from .. import backend
from ..backend import Array


def cell_forward(z: Array, c_before: Array, c: Array, h: Array) -> None:
    """One time step: z (4, n, H) becomes the gates i, f, g, o in place; c and h (n, H) receive c_t and h_t.

    Reads c_{t-1}; h_{t-1} is in z already. z_i, z_f and z_o come halved, because sigmoid(z) = (1 + tanh(z / 2)) / 2,
    which cannot overflow.
    """
    xp = backend.of(z)
    half, rest = halves(xp, z.dtype)
    xp.tanh(z, out=z)
    z *= half
    z += rest
    i, f, g, o = z
    xp.multiply(i, g, out=h)  # h is scratch until the last lines
    xp.multiply(f, c_before, out=c)
    c += h
    xp.tanh(c, out=h)
    h *= o


@functools.cache
def halves(xp: ModuleType, dtype: np.dtype) -> tuple[Array, Array]:
    """(0.5, 0.5, 1, 0.5) for the gates i, f, g, o, and 1 minus that, each (4, 1, 1)."""
    half = xp.asarray([0.5, 0.5, 1, 0.5], dtype).reshape(4, 1, 1)
    return half, 1 - half


def cell_slopes(gates: Array, c_before: Array, c: Array, slopes: Array, dh_dc: Array, work: Array) -> None:
    """The derivatives of c_t and h_t, for one time step or for many at once: no row needs another.

    Reads gates (4, n, H), c_{t-1} and c_t (n, H). slopes (4, n, H) receives dc_t/dz_i, dc_t/dz_f, dc_t/dz_g and
    dh_t/dz_o (o acts on h_t alone), dh_dc (n, H) receives dh_t/dc_t: all elementwise. work (n, H)
    is scratch.

    sigmoid' = s (1 - s) and tanh' = 1 - g^2 follow from the activations themselves.
    """
    xp = backend.of(gates)
    i, f, g, o = gates
    by_i, by_f, by_g, by_o = slopes

    xp.tanh(c, out=dh_dc)
    xp.multiply(o, dh_dc, out=by_o)
    dh_dc *= by_o
    xp.subtract(o, dh_dc, out=dh_dc)  # dh/dc = o (1 - tanh(c)^2)
    by_o -= xp.multiply(by_o, o, out=work)  # dh/dz_o = tanh(c) o (1 - o)

    xp.multiply(i, g, out=by_i)
    xp.multiply(by_i, g, out=by_g)
    xp.subtract(i, by_g, out=by_g)  # dc/dz_g = i (1 - g^2)
    by_i -= xp.multiply(by_i, i, out=work)  # dc/dz_i = g i (1 - i)

    xp.multiply(f, c_before, out=by_f)
    by_f -= xp.multiply(by_f, f, out=work)  # dc/dz_f = c_{t-1} f (1 - f)


def cell_backward(slopes: Array, dh_dc: Array, f: Array, dh: Array, dc: Array) -> None:
    """The gradient of one time step, by the chain rule: slopes (4, n, H) becomes dL/dz_t in place.

    slopes and dh_dc come from `cell_slopes`; dh (n, H) is dL/dh_t. dc comes in as the part of dL/dc_t that flows
    back from step t+1, and goes out as dL/dc_{t-1}. dh_dc is used up.
    """
    dh_dc *= dh
    dc += dh_dc  # dL/dc_t = what came from t+1, plus dL/dh_t dh_t/dc_t
    slopes[:3] *= dc  # dL/dz_i, dL/dz_f, dL/dz_g
    slopes[3] *= dh  # dL/dz_o
    dc *= f  # dL/dc_{t-1}: the road that skips all weights
