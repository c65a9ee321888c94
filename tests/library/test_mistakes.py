"""Mistakes found in published LSTMs, each with a case small enough to check by hand.

All weights are zero except those under test, so the gates depend only on the biases.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import filled, relative_error

import minidl

GATES = "ifgo"
BIASES = {"i": 0.3, "f": -0.7, "g": 1.1, "o": 0.5}


def sigmoid(z: float) -> float:
    return 1 / (1 + np.exp(-z))


def bare_lstm() -> minidl.LSTM:
    """One unit, one input, weights zero."""
    lstm = minidl.LSTM(1, 1, dtype="float64")
    for parameter in lstm.parameters():
        parameter.data[...] = 0
    return lstm


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_each_gate_reads_its_own_bias_weight_and_recurrent_weight() -> None:
    """One gate's weights used for another."""
    i, f, o = (sigmoid(BIASES[gate]) for gate in "ifo")
    cell = f * 0.4 + i * np.tanh(BIASES["g"])
    for source in ("bias", "weight_ih", "weight_hh"):
        lstm = bare_lstm()
        getattr(lstm, source).data[...] = np.reshape(list(BIASES.values()), getattr(lstm, source).data.shape)
        y, cache = lstm.forward(column(1.0), minidl.Packing([1]), (column(1.0), column(0.4)))
        assert relative_error(cache.state[1], column(cell)) < 1e-14, source
        assert relative_error(y, column(o * np.tanh(cell))) < 1e-14, source
        h, c = lstm.step(column(1.0), (column(1.0), column(0.4)))
        assert relative_error(c, column(cell)) < 1e-14, source
        assert relative_error(h, column(o * np.tanh(cell))) < 1e-14, source


def test_h0_and_c0_are_not_swapped() -> None:
    lstm = bare_lstm()  # gates 1/2, candidate 0
    y, cache = lstm.forward(column(0.0), minidl.Packing([1]), (column(9.0), column(0.8)))
    h, c = cache.state
    assert c.item() == 0.4 and y.item() == h.item() == 0.5 * np.tanh(0.4)
    h, c = lstm.step(column(0.0), (column(9.0), column(0.8)))
    assert c.item() == 0.4 and h.item() == 0.5 * np.tanh(0.4)
    lstm.backward(column(0.0), cache, (column(0.0), column(1.0)))
    dh0, dc0 = cache.dstate
    assert dh0.item() == 0.0 and dc0.item() == 0.5


def test_dh_and_dc_are_not_swapped() -> None:
    lstm = bare_lstm()
    _, cache = lstm.forward(column(0.0), minidl.Packing([1]), (column(0.0), column(0.8)))
    lstm.backward(column(0.0), cache, (column(1.0), column(0.0)))
    np.testing.assert_allclose(cache.dstate[1], 0.5 * (1 - np.tanh(0.4) ** 2) * 0.5, rtol=1e-14)


def test_the_first_step_is_not_skipped() -> None:
    lstm = filled(minidl.LSTM(2, 3, dtype="float64"))
    x, state, packing = np.ones((3, 2)), (np.ones((1, 3)), np.ones((1, 3))), minidl.Packing([1, 1, 1])
    y, _ = lstm.forward(x, packing, state)
    inferred = lstm(x, packing)
    x[0] += 1
    assert (inferred[0] != lstm(x, packing)[0]).all()
    moved, _ = lstm.forward(x, packing, state)
    assert (y[0] != moved[0]).all()
    dy = np.zeros_like(y)
    dy[0] = 1  # a loss of the first step alone
    _, cache = lstm.forward(x, packing, state)
    dx = lstm.backward(dy, cache)
    dh0, dc0 = cache.dstate
    assert dx[0].all() and dh0.all() and dc0.all() and not dx[1:].any()
    assert all(parameter.grad.all() for parameter in lstm.parameters())


def test_the_recurrent_weights_meet_the_h_of_the_step_before() -> None:
    """h[t] used for h[t-1]: of one step, dL/dW_hh = dz h_0^T, and nothing where h_0 is zero."""
    lstm = filled(minidl.LSTM(2, 3, dtype="float64"))
    x, dy = np.ones((1, 2)), np.ones((1, 3))
    lstm.backward(dy, lstm.forward(x, minidl.Packing([1]))[1])
    assert not lstm.weight_hh.grad.any() and lstm.bias.grad.any()

    lstm = filled(minidl.LSTM(2, 3, dtype="float64"))
    h0 = np.array([[2.0, -1.0, 0.5]])
    lstm.backward(dy, lstm.forward(x, minidl.Packing([1]), (h0, np.zeros((1, 3))))[1])
    np.testing.assert_allclose(lstm.weight_hh.grad, np.outer(lstm.bias.grad, h0), rtol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_cell_state_road_is_not_cut(steps: int) -> None:
    """With weights of zero a gradient reaches c_0 by the forget gates alone: 1/2 a step."""
    lstm = bare_lstm()
    x = np.ones((steps, 1))
    _, cache = lstm.forward(x, minidl.Packing([1] * steps), (column(0.3), column(0.9)))
    lstm.backward(np.zeros((steps, 1)), cache, (column(0.0), column(1.0)))
    dh0, dc0 = cache.dstate
    assert dc0.item() == 0.5**steps and dh0.item() == 0.0


def test_the_road_through_the_hidden_state_is_not_cut() -> None:
    lstm = filled(minidl.LSTM(1, 2, dtype="float64"))
    lstm.weight_hh.data[...] = 0  # now h_{t-1} has no way into step t
    x, dy = np.ones((2, 1)), np.array([[0.0, 0.0], [1.0, 1.0]])
    state, packing = (np.ones((1, 2)), np.zeros((1, 2))), minidl.Packing([1, 1])
    _, cache = lstm.forward(x, packing, state)
    lstm.backward(dy, cache)
    assert not cache.dstate[0].any()
    lstm.weight_hh.data[...] = 0.5
    _, cache = lstm.forward(x, packing, state)
    lstm.backward(dy, cache)
    assert cache.dstate[0].all()


@pytest.mark.parametrize("gate", GATES)
def test_every_gates_gradient_reaches_the_parameters(gate: str) -> None:
    """Gate gradients computed but not stored: each quarter of each gradient, against a difference."""
    lstm = filled(minidl.LSTM(2, 3, dtype="float64"))
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(4, 2)), rng.normal(size=(4, 3))
    state, packing = (rng.normal(size=(2, 3)), rng.normal(size=(2, 3))), minidl.Packing([2, 1, 1])
    lstm.backward(dy, lstm.forward(x, packing, state)[1])
    quarter = slice(3 * GATES.index(gate), 3 * GATES.index(gate) + 3)
    for name, parameter in lstm.named_parameters():
        block = parameter.data[quarter]
        direction = rng.normal(size=block.shape)
        losses = []
        for shift in (1e-5, -1e-5):
            block += shift * direction
            losses.append((lstm.forward(x, packing, state)[0] * dy).sum())
            block -= shift * direction
        numeric = (losses[0] - losses[1]) / 2e-5
        analytic = (parameter.grad[quarter] * direction).sum()
        assert abs(numeric) > 1e-3, "the case must be able to fail"
        assert abs(analytic - numeric) < 1e-7, (gate, name)


def test_gradients_are_zeroed_when_asked_and_only_then() -> None:
    lstm = filled(minidl.LSTM(2, 3, dtype="float64"))
    optimizer = minidl.SGD(lstm.parameters(), lr=0.1)
    x, dy = np.ones((3, 2)), np.ones((3, 3))
    _, cache = lstm.forward(x, minidl.Packing([2, 1]))
    lstm.backward(dy, cache)
    once = [parameter.grad.copy() for parameter in lstm.parameters()]
    lstm.backward(dy, cache)
    optimizer.step()
    for parameter, grad in zip(lstm.parameters(), once, strict=True):
        assert relative_error(parameter.grad, 2 * grad) < 1e-14, "step must not touch gradients"
    optimizer.zero_grad()
    assert not any(parameter.grad.any() for parameter in lstm.parameters())


def test_the_shapes_say_which_row_is_whose_when_a_sequence_ends() -> None:
    """The short sequence's gradient enters at its own last step, not at the batch's."""
    lstm = filled(minidl.LSTM(1, 1, dtype="float64"))
    x = np.ones((4, 1))  # lengths 3 and 1
    _, cache = lstm.forward(x, minidl.Packing([2, 1, 1]))
    dx = lstm.backward(np.zeros((4, 1)), cache, (column(0.0, 1.0), column(0.0, 0.0)))
    assert dx.reshape(-1).astype(bool).tolist() == [False, True, False, False]
    dx = lstm.backward(np.zeros((4, 1)), cache, (column(1.0, 0.0), column(0.0, 0.0)))
    assert dx.reshape(-1).astype(bool).tolist() == [True, False, True, True]
