"""The LSTM on a GPU: one matrix product and one kernel per time step, in each direction.

Rows are packed as in `layers.lstm`; the gates of a row are adjacent, (N, 4H), in the order i, f, g, o. Row r of time
step t is row start_t + r, and its sequence's row at step t + 1, if r < n_{t+1}, is start_{t+1} + r. Every step writes
its h and c directly into the next step's rows of `h_before` and `c_before`, so both are complete (N, H) arrays for the
weight gradients, and no step has to gather anything.

Forward     Z = X W_ih^T for all rows in one product; then for each step
            Z_t += H_{t-1} W_hh^T   (a product that adds in place)  and  lstm_forward
Backward    for each step from the last   lstm_backward  and  dH_{t-1} = dZ_t W_hh;   then for all rows at once
            dX = dZ W_ih,  dW_ih += dZ^T X,  dW_hh += dZ^T H_before,  db += the sum of dZ's rows
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ... import backend, checks
from ...backend import Array
from .launch import Kernel, blocks
from .product import add_column_sums, product, products_of_rows

State = tuple[Array, Array]  # (h, c), each (B, H)

# Both kernels have one thread per row and unit of the step, n x H; neighbouring threads have neighbouring units.

FORWARD = Kernel(r"""
extern "C" __global__ void lstm_forward(
    real* gates,         // (N, 4H): in: z without its bias; out: i f g o after their activation
    const real* bias,    // (4H)
    real* h_before,      // (N, H): h_{t-1} of every row
    real* c_before,      // (N, H): c_{t-1} of every row
    real* y,             // (N, H): h_t
    real* h_last,        // (B, H): h and c of a sequence that ends here
    real* c_last,
    long long start,     // of this step's rows
    int n,               // number of rows
    int next,            // number of rows that continue at the next step
    long long H)
{
    long long index = blockIdx.x * (long long)THREADS + threadIdx.x;
    if (index >= n * H) return;
    long long row = index / H, unit = index % H;

    real* z = gates + (start + row) * 4 * H + unit;
    // if exp overflows to infinity, the quotient is correctly 0
    real i = 1 / (1 + exp(-(z[0] + bias[unit])));
    real f = 1 / (1 + exp(-(z[H] + bias[H + unit])));
    real g = tanh(z[2 * H] + bias[2 * H + unit]);
    real o = 1 / (1 + exp(-(z[3 * H] + bias[3 * H + unit])));
    z[0] = i;
    z[H] = f;
    z[2 * H] = g;
    z[3 * H] = o;

    real c = f * c_before[start * H + index] + i * g;
    real h = o * tanh(c);
    y[start * H + index] = h;
    if (row < next) {
        h_before[(start + n) * H + index] = h;
        c_before[(start + n) * H + index] = c;
    } else {
        h_last[index] = h;
        c_last[index] = c;
    }
}
""")

BACKWARD = Kernel(r"""
extern "C" __global__ void lstm_backward(
    const real* gates,     // (N, 4H)
    const real* c_before,  // (N, H)
    const real* dy,        // (N, H): dL/dh_t from the loss
    const real* dh_later,  // (B, H): dL/dh_t from step t+1 or from the final state
    real* dc_later,        // (B, H): in: dL/dc_t from there; out: dL/dc_{t-1}
    real* dz,              // (N, 4H): dL/dz
    long long start,
    int n,
    long long H)
{
    long long index = blockIdx.x * (long long)THREADS + threadIdx.x;
    if (index >= n * H) return;
    long long row = index / H, unit = index % H;

    long long first = (start + row) * 4 * H + unit;
    real i = gates[first], f = gates[first + H], g = gates[first + 2 * H], o = gates[first + 3 * H];
    real before = c_before[start * H + index];
    real tanh_c = tanh(f * before + i * g);  // c_t, faster to recompute than to read

    real dh = dy[start * H + index] + dh_later[index];
    real dc = dc_later[index] + dh * o * (1 - tanh_c * tanh_c);
    dz[first] = dc * g * i * (1 - i);
    dz[first + H] = dc * before * f * (1 - f);
    dz[first + 2 * H] = dc * i * (1 - g * g);
    dz[first + 3 * H] = dh * tanh_c * o * (1 - o);
    dc_later[index] = dc * f;
}
""")

KERNELS = (FORWARD, BACKWARD)


@dataclass(eq=False)
class DeviceLSTMCache:
    """What backward needs, and the states at both ends."""

    batch_sizes: list[int]  # T sizes, n_0 >= n_1 >= ...
    x: Array  # (N, I)
    gates: Array  # (N, 4H): i, f, g, o after their activation
    h_before: Array  # (N, H): h_{t-1} of every row
    c_before: Array  # (N, H)
    state: State  # after every sequence's own last step
    dstate: State | None = None  # set by backward: the gradient of the initial state


def forward(lstm: Any, x: Array, sizes: list[int], state: State | None) -> tuple[Array, DeviceLSTMCache]:
    """LSTM.forward; x is checked."""
    xp, N, H, n = backend.of(x), len(x), lstm.hidden_size, sizes[0]
    x, gates, y = xp.ascontiguousarray(x), xp.empty((N, 4 * H), x.dtype), xp.empty((N, H), x.dtype)
    before = xp.empty((2, N, H), x.dtype)
    h_before, c_before = before[0], before[1]
    if state is None:
        before[:, :n] = 0
        h, c = xp.empty((n, H), x.dtype), xp.empty((n, H), x.dtype)
    else:
        h0, c0 = checks.state("state", state, n, H, like=x)
        h_before[:n], c_before[:n] = h0[:n], c0[:n]
        # each sequence's row is written by its last step
        h, c = (xp.empty((n, H), x.dtype) if len(part) == n else part.copy() for part in (h0, c0))

    product(x, lstm.weight_ih.data, gates, transposed="NT")
    recur = products_of_rows(h_before, lstm.weight_hh.data, gates, add=True, transposed="T")
    step = FORWARD.on(gates, lstm.bias.data, h_before, c_before, y, h, c)
    start = 0
    for n, following in zip(sizes, [*sizes[1:], 0], strict=True):
        recur(n, start, start)
        step(blocks(n * H), start, n, following, H)
        start += n
    return y, DeviceLSTMCache(sizes, x, gates, h_before, c_before, (h, c))


def step(lstm: Any, x: Array, state: State | None) -> State:
    """LSTM.step; x is checked."""
    if state is not None:
        checks.state("state", state, len(x), lstm.hidden_size, like=x, exact=True)
    return forward(lstm, x, [len(x)], state)[1].state


def backward(lstm: Any, dy: Array, cache: DeviceLSTMCache, dstate: State | None) -> Array:
    """LSTM.backward."""
    checks.cache(cache, DeviceLSTMCache)
    sizes, x, gates, c_before, sequences = cache.batch_sizes, cache.x, cache.gates, cache.c_before, len(cache.state[0])
    weight_hh, H = lstm.weight_hh.data, lstm.hidden_size
    checks.matrix("dy", dy, H, like=weight_hh, rows=len(x))
    xp = backend.of(x)
    if dstate is None:
        both = xp.zeros((2, sequences, H), x.dtype)
        dh, dc = both[0], both[1]
    else:
        dstate = checks.state("dstate", dstate, sequences, H, like=x, exact=True)
        dh, dc = (xp.array(part, order="C") for part in dstate)
    dz, dx = xp.empty(gates.shape, x.dtype), xp.empty(x.shape, x.dtype)

    recur = products_of_rows(dz, weight_hh, dh)
    step = BACKWARD.on(gates, c_before, xp.ascontiguousarray(dy), dh, dc, dz)
    starts = list(accumulate(sizes, initial=0))
    for n, start in zip(reversed(sizes), reversed(starts[:-1]), strict=True):
        step(blocks(n * H), start, n, H)
        recur(n, start, 0)

    product(dz, lstm.weight_ih.data, dx)
    product(dz, x, lstm.weight_ih.grad, add=True, transposed="TN")
    product(dz, cache.h_before, lstm.weight_hh.grad, add=True, transposed="TN")
    add_column_sums(dz, lstm.bias.grad)
    cache.dstate = dh, dc
    return dx
