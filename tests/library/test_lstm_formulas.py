"""Every formula in docs/lstm-gradients.md, one test each.

A formula is a product of diag[...] and weight matrices. Its Jacobian, (H, *shape of the variable), must agree
when computed in three ways:

    formula    the product itself
    minidl     rows from LSTM.backward: a one-hot dL/dh_t in unit k gives row k
    numerical  complex steps, Im f(v + 1e-30 i) / 1e-30, through the cell written out in `step`: nothing
               is subtracted, so this too is exact to the last digits of float64
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minidl import LSTM, Packing
from minidl.layers.lstm import State

ROOT = Path(__file__).parents[2]
H, INPUTS, ROWS = 3, 5, 4
GATES = "ifgo"  # the order of the blocks in weight_ih, weight_hh and bias; g is the report's c~
LENGTHS = (6, 4, 4, 1)
SIZES = (4, 3, 3, 3, 1, 1)  # how many of LENGTHS are alive at each step
Values = dict[str, np.ndarray]
diag = np.diag


def layer_and_rng() -> tuple[LSTM, np.random.Generator]:
    """A float64 layer with biases that are not zero."""
    rng = np.random.default_rng(7)
    layer = LSTM(INPUTS, H, dtype="float64", rng=rng)
    layer.bias.data[...] = rng.normal(size=4 * H)
    return layer, rng


def named(layer: LSTM, attribute: str = "data") -> Values:
    """W_i ... W_o, each [weight_hh, weight_ih] side by side (H, H + I), and b_i ... b_o (H,)."""
    hh, ih, b = (getattr(p, attribute) for p in (layer.weight_hh, layer.weight_ih, layer.bias))
    found = {}
    for number, gate in enumerate(GATES):
        block = slice(number * H, (number + 1) * H)
        found["W_" + gate] = np.hstack([hh[block], ih[block]])
        found["b_" + gate] = b[block].copy()
    return found


def zero_grad(layer: LSTM) -> None:
    for parameter in layer.parameters():
        parameter.grad[...] = 0


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def step(v: Values) -> tuple[np.ndarray, np.ndarray]:
    """(h_t, c_t) of one row by the forward equations; a gate or c in `v` is taken from there."""
    z = np.concatenate([v["h_before"], v["x"]])
    i, f, o = (v[k] if k in v else sigmoid(v["W_" + k] @ z + v["b_" + k]) for k in "ifo")
    g = v["g"] if "g" in v else np.tanh(v["W_g"] @ z + v["b_g"])
    c = v["c"] if "c" in v else f * v["c_before"] + i * g
    return o * np.tanh(c), c


def complex_jacobian(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """d function / d at, (*function's shape, *at.shape)."""
    columns = []
    for place in np.ndindex(at.shape):
        moved = at.astype(complex)
        moved[place] += 1e-30j
        columns.append(function(moved).imag / 1e-30)
    return np.stack(columns, axis=-1).reshape(*columns[0].shape, *at.shape)


def agree(*values: np.ndarray) -> None:
    for value in values[1:]:
        assert value.shape == values[0].shape and value.dtype == values[0].dtype
        np.testing.assert_allclose(value, values[0], rtol=1e-12, atol=1e-15)


def relative_error(wrong: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(wrong - right) / np.linalg.norm(right))


@dataclass
class Row:
    """One row's step: its values, and dh_t / d(name) as minidl's backward passes have it."""

    v: Values  # x, h_before, c_before, W_*, b_*
    i: np.ndarray
    f: np.ndarray
    g: np.ndarray
    o: np.ndarray
    c: np.ndarray
    minidl: Values

    @property
    def z(self) -> np.ndarray:
        """The report's z_t = [h_{t-1}; x_t]."""
        return np.concatenate([self.v["h_before"], self.v["x"]])

    def hh(self, gate: str) -> np.ndarray:
        return self.v["W_" + gate][:, :H]

    def ih(self, gate: str) -> np.ndarray:
        return self.v["W_" + gate][:, H:]

    def numerical(self, name: str) -> np.ndarray:
        at = getattr(self, name) if name in (*GATES, "c") else self.v[name]
        return complex_jacobian(lambda moved: step({**self.v, name: moved})[0], at)


def slopes(row: Row) -> Values:
    """diag[o (1 - o)] and its like: what an activation does to a gradient on its way to z."""
    return {k: diag(getattr(row, k) * (1 - getattr(row, k))) for k in "ifo"} | {"g": diag(1 - row.g**2)}


# The complete formulas of the report's Question 1.


def dh_do(r: Row) -> np.ndarray:
    return diag(np.tanh(r.c))


def dh_dc(r: Row) -> np.ndarray:
    return diag(r.o * (1 - np.tanh(r.c) ** 2))


def dh_df(r: Row) -> np.ndarray:
    return dh_dc(r) @ diag(r.v["c_before"])


def dh_di(r: Row) -> np.ndarray:
    return dh_dc(r) @ diag(r.g)


def dh_dg(r: Row) -> np.ndarray:
    return dh_dc(r) @ diag(r.i)


def dh_dz(r: Row) -> Values:
    """dh_t by each gate's pre-activation, which is also dh_t / db."""
    gates = {"i": dh_di(r), "f": dh_df(r), "g": dh_dg(r), "o": dh_do(r)}
    return {k: gates[k] @ slope for k, slope in slopes(r).items()}


def dh_dh_before(r: Row, paths: str = GATES) -> np.ndarray:
    return np.sum([dh_dz(r)[k] @ r.hh(k) for k in paths], axis=0)


def dh_dx(r: Row, paths: str = GATES) -> np.ndarray:
    return np.sum([dh_dz(r)[k] @ r.ih(k) for k in paths], axis=0)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """ROWS rows of one step, and minidl's Jacobians for each."""
    layer, rng = layer_and_rng()
    x = rng.normal(size=(ROWS, INPUTS))
    h_before, c_before = rng.normal(size=(2, ROWS, H))
    _, cache = layer.forward(x, Packing([ROWS]), (h_before, c_before))
    ((_, walk),) = cache.walks
    gates, c = walk.gates, cache.state[1]
    slope = gates * (1 - gates)
    slope[GATES.index("g")] = 1 - gates[GATES.index("g")] ** 2
    found = []
    for row in range(ROWS):
        by_layer: dict[str, list[np.ndarray]] = {}
        for unit in range(H):
            dy = np.zeros((ROWS, H))
            dy[row, unit] = 1
            zero_grad(layer)
            dx = layer.backward(dy, cache)
            dh_before, dc_before = (part[row] for part in cache.dstate)
            by_weights = named(layer, "grad")
            by_state = {"h_before": dh_before, "c_before": dc_before, "c": dc_before / gates[GATES.index("f"), row]}
            # a bias's gradient is dL/dz of this row, since no other has any
            by_gate = {gate: by_weights["b_" + gate] / slope[k, row] for k, gate in enumerate(GATES)}
            for name, value in {"x": dx[row], **by_state, **by_gate, **by_weights}.items():
                by_layer.setdefault(name, []).append(value)
        jacobians = {name: np.stack(parts) for name, parts in by_layer.items()}
        v = {"x": x[row], "h_before": h_before[row], "c_before": c_before[row], **named(layer)}
        i, f, g, o = gates[:, row]
        found.append(Row(v, i, f, g, o, c[row], jacobians))
    return found


def test_the_forward_step(rows: list[Row]) -> None:
    layer, _ = layer_and_rng()
    x, h, c = (np.stack([r.v[name] for r in rows]) for name in ("x", "h_before", "c_before"))
    y, cache = layer.forward(x, Packing([ROWS]), (h, c))
    h, c = cache.state
    expected = [step(r.v) for r in rows]
    agree(np.stack([h for h, _ in expected]), y, h)
    agree(np.stack([c for _, c in expected]), np.stack([r.c for r in rows]), c)


def test_dh_by_o(rows: list[Row]) -> None:
    for r in rows:
        agree(diag(np.tanh(r.c)), r.minidl["o"], r.numerical("o"))


def test_dh_by_c(rows: list[Row]) -> None:
    for r in rows:
        agree(diag(r.o * (1 - np.tanh(r.c) ** 2)), r.minidl["c"], r.numerical("c"))


def test_dh_by_f(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_dc(r) @ diag(r.v["c_before"]), r.minidl["f"], r.numerical("f"))


def test_dh_by_i(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_dc(r) @ diag(r.g), r.minidl["i"], r.numerical("i"))


def test_dh_by_the_candidate(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_dc(r) @ diag(r.i), r.minidl["g"], r.numerical("g"))


def test_dh_by_c_before(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_dc(r) @ diag(r.f), r.minidl["c_before"], r.numerical("c_before"))


def test_dh_by_h_before(rows: list[Row]) -> None:
    for r in rows:
        formula = (
            dh_do(r) @ diag(r.o * (1 - r.o)) @ r.hh("o")
            + dh_df(r) @ diag(r.f * (1 - r.f)) @ r.hh("f")
            + dh_di(r) @ diag(r.i * (1 - r.i)) @ r.hh("i")
            + dh_dg(r) @ diag(1 - r.g**2) @ r.hh("g")
        )
        agree(formula, r.minidl["h_before"], r.numerical("h_before"))


def test_dh_by_x(rows: list[Row]) -> None:
    for r in rows:
        formula = (
            dh_do(r) @ diag(r.o * (1 - r.o)) @ r.ih("o")
            + dh_df(r) @ diag(r.f * (1 - r.f)) @ r.ih("f")
            + dh_di(r) @ diag(r.i * (1 - r.i)) @ r.ih("i")
            + dh_dg(r) @ diag(1 - r.g**2) @ r.ih("g")
        )
        agree(formula, r.minidl["x"], r.numerical("x"))


def test_dh_by_W_f(rows: list[Row]) -> None:
    for r in rows:
        formula = np.multiply.outer(dh_df(r) @ diag(r.f * (1 - r.f)), r.z)
        agree(formula, r.minidl["W_f"], r.numerical("W_f"))


def test_dh_by_W_i(rows: list[Row]) -> None:
    for r in rows:
        formula = np.multiply.outer(dh_di(r) @ diag(r.i * (1 - r.i)), r.z)
        agree(formula, r.minidl["W_i"], r.numerical("W_i"))


def test_dh_by_W_c(rows: list[Row]) -> None:
    for r in rows:
        formula = np.multiply.outer(dh_dg(r) @ diag(1 - r.g**2), r.z)
        agree(formula, r.minidl["W_g"], r.numerical("W_g"))


def test_dh_by_W_o(rows: list[Row]) -> None:
    for r in rows:
        formula = np.multiply.outer(dh_do(r) @ diag(r.o * (1 - r.o)), r.z)
        agree(formula, r.minidl["W_o"], r.numerical("W_o"))


def test_dh_by_b_f(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_df(r) @ diag(r.f * (1 - r.f)), r.minidl["b_f"], r.numerical("b_f"))


def test_dh_by_b_i(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_di(r) @ diag(r.i * (1 - r.i)), r.minidl["b_i"], r.numerical("b_i"))


def test_dh_by_b_c(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_dg(r) @ diag(1 - r.g**2), r.minidl["b_g"], r.numerical("b_g"))


def test_dh_by_b_o(rows: list[Row]) -> None:
    for r in rows:
        agree(dh_do(r) @ diag(r.o * (1 - r.o)), r.minidl["b_o"], r.numerical("b_o"))


# Question 2: through time.


@dataclass
class Run:
    """A packed batch of LENGTHS with one state row more than there are sequences, and upstream gradients."""

    layer: LSTM
    x: np.ndarray  # (N, I)
    state: State  # (B, H) each
    dy: np.ndarray  # (N, H)
    dstate: State  # (B, H) each
    cache: Any

    def place(self, sequence: int, t: int) -> int:
        """The packed row of a sequence's step t."""
        return sum(SIZES[:t]) + sequence

    def steps(self, sequence: int) -> list[Row]:
        """The sequence's steps, run one by one through `step`."""
        h, c = (part[sequence] for part in self.state)
        weights, found = named(self.layer), []
        for t in range(LENGTHS[sequence]):
            v = {"x": self.x[self.place(sequence, t)], "h_before": h, "c_before": c, **weights}
            z = np.concatenate([h, v["x"]])
            i, f, o = (sigmoid(v["W_" + k] @ z + v["b_" + k]) for k in "ifo")
            g = np.tanh(v["W_g"] @ z + v["b_g"])
            h, c = step(v)
            found.append(Row(v, i, f, g, o, c, {}))
        return found

    def backward(self) -> Values:
        zero_grad(self.layer)
        dx = self.layer.backward(self.dy, self.cache, self.dstate)
        dh0, dc0 = self.cache.dstate
        return {"x": dx, "h0": dh0, "c0": dc0, **named(self.layer, "grad")}


@pytest.fixture(scope="module")
def run() -> Run:
    layer, rng = layer_and_rng()
    x, dy = rng.normal(size=(sum(SIZES), INPUTS)), rng.normal(size=(sum(SIZES), H))
    state, dstate = ((s[0], s[1]) for s in rng.normal(size=(2, 2, len(LENGTHS) + 1, H)))
    return Run(layer, x, state, dy, dstate, layer.forward(x, Packing(SIZES), state)[1])


def bptt(run: Run, paths: str = GATES, cell_road: bool = True) -> Values:
    """Question 2 as a recursion: every step's own gradients out of the formulas, then their sum."""
    total = {name: np.zeros_like(value) for name, value in named(run.layer).items()}
    dx, (dh0, dc0) = np.empty_like(run.x), (part.copy() for part in run.dstate)
    for sequence in range(len(LENGTHS)):
        dh, dc = dh0[sequence], dc0[sequence]  # of h_t and c_t, without y_t's share
        for t, r in reversed(list(enumerate(run.steps(sequence)))):
            dh = dh + run.dy[run.place(sequence, t)]
            dc = dc + dh @ dh_dc(r)  # the two roads join
            by_gate = {"i": dc @ diag(r.g), "f": dc @ diag(r.v["c_before"]), "g": dc @ diag(r.i)}
            by_gate["o"] = dh @ diag(np.tanh(r.c))
            dz = {k: by_gate[k] @ slope for k, slope in slopes(r).items()}
            for k in GATES:
                total["W_" + k] += np.outer(dz[k], r.z)
                total["b_" + k] += dz[k]
            dx[run.place(sequence, t)] = np.sum([dz[k] @ r.ih(k) for k in paths], axis=0)
            dh = np.sum([dz[k] @ r.hh(k) for k in paths], axis=0)
            dc = dc @ diag(r.f) if cell_road else np.zeros(H)
        dh0[sequence], dc0[sequence] = dh, dc
    return {"x": dx, "h0": dh0, "c0": dc0, **total}


def test_the_sum_of_all_steps_gradients_is_the_layers(run: Run) -> None:
    got, expected = run.backward(), bptt(run)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_sum_of_all_steps_gradients_is_the_numerical_one(run: Run) -> None:
    def loss(v: Values) -> np.ndarray:
        total = np.zeros((), complex)
        for sequence, length in enumerate(LENGTHS):
            h, c = v["h0"][sequence], v["c0"][sequence]
            for place in (run.place(sequence, t) for t in range(length)):
                h, c = step({**v, "x": v["x"][place], "h_before": h, "c_before": c})
                total += run.dy[place] @ h
            total += run.dstate[0][sequence] @ h + run.dstate[1][sequence] @ c
        idle = len(LENGTHS)  # the state row beyond the batch comes out as it went in
        return total + run.dstate[0][idle] @ v["h0"][idle] + run.dstate[1][idle] @ v["c0"][idle]

    def loss_with(name: str, moved: np.ndarray) -> np.ndarray:
        return loss({**at, name: moved})

    at = {"x": run.x, "h0": run.state[0], "c0": run.state[1], **named(run.layer)}
    for name, value in bptt(run).items():
        numerical = complex_jacobian(partial(loss_with, name), at[name])
        np.testing.assert_allclose(value, numerical, rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_two_roads_are_one_recursion_over_the_pair_h_c(run: Run) -> None:
    """d(h_T, c_T) / d(h_0, c_0) is the product of the steps' 2H x 2H Jacobians; with h alone it is not."""
    sequence, h_alone, both = 0, np.eye(H), np.eye(2 * H)
    for r in run.steps(sequence):
        by_z = {"i": diag(r.g), "f": diag(r.v["c_before"]), "g": diag(r.i)}
        dc_dh_before = np.sum([by_z[k] @ slopes(r)[k] @ r.hh(k) for k in by_z], axis=0)
        pair = np.block([[dh_dh_before(r), dh_dc(r) @ diag(r.f)], [dc_dh_before, diag(r.f)]])
        both, h_alone = pair @ both, dh_dh_before(r) @ h_alone

    found = np.empty((2 * H, 2 * H))
    for unit in range(2 * H):
        dstate = np.zeros((2, len(LENGTHS) + 1, H))
        dstate[unit // H, sequence, unit % H] = 1
        run.layer.backward(np.zeros_like(run.dy), run.cache, (dstate[0], dstate[1]))
        dh0, dc0 = run.cache.dstate
        found[unit] = np.concatenate([dh0[sequence], dc0[sequence]])
    np.testing.assert_allclose(found, both, rtol=1e-12, atol=1e-14)
    assert relative_error(h_alone, both[:H, :H]) > 0.5


# What the report leaves out makes a difference.


def test_without_the_candidate_dh_by_h_before_is_wrong(rows: list[Row]) -> None:
    for r in rows:
        short = dh_dh_before(r, "ofi")
        assert relative_error(short, r.minidl["h_before"]) > 0.2
        agree(r.minidl["h_before"], short + dh_dg(r) @ diag(1 - r.g**2) @ r.hh("g"))


def test_without_the_candidate_dh_by_x_is_wrong(rows: list[Row]) -> None:
    for r in rows:
        short = dh_dx(r, "ofi")
        assert relative_error(short, r.minidl["x"]) > 0.2
        agree(r.minidl["x"], short + dh_dg(r) @ diag(1 - r.g**2) @ r.ih("g"))


@pytest.mark.parametrize("gate", GATES)
def test_diag_of_z_is_no_outer_product(rows: list[Row], gate: str) -> None:
    for r in rows:
        with pytest.raises(ValueError, match="matmul"):
            dh_dz(r)[gate] @ diag(r.z)  # (H, H) times (H + I, H + I)
        right = r.minidl["W_" + gate].sum(axis=0)[:, :H]  # the h half, for dL/dh_t = 1
        short = np.ones(H) @ dh_dz(r)[gate] @ diag(r.v["h_before"])  # it does multiply for this half
        agree(diag(right), short)
        assert relative_error(diag(short), right) > 0.3


@pytest.mark.parametrize("name", ["x", "h0", "c0", *(kind + k for k in GATES for kind in ("W_", "b_"))])
def test_without_the_cell_road_bptt_is_wrong(run: Run, name: str) -> None:
    assert relative_error(bptt(run, cell_road=False)[name], run.backward()[name]) > 1e-3


@pytest.mark.parametrize("name", ["x", "h0", "c0", *(kind + k for k in GATES for kind in ("W_", "b_"))])
def test_without_the_candidate_bptt_is_wrong(run: Run, name: str) -> None:
    assert relative_error(bptt(run, paths="ifo")[name], run.backward()[name]) > 1e-3


# The document and its script.


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shortened_gradients", ROOT / "docs/shortened_gradients.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cell_road", [True, False])
@pytest.mark.parametrize("candidate", [True, False])
def test_the_scripts_cuts_are_the_recursions(script: ModuleType, run: Run, candidate: bool, cell_road: bool) -> None:
    before = named(run.layer)
    undisturbed = Run(**{**vars(run), "dstate": tuple(np.zeros_like(part) for part in run.dstate)})
    expected = bptt(undisturbed, GATES if candidate else "ifo", cell_road)
    zero_grad(run.layer)
    _, caches = script.forward(run.layer, run.x, SIZES, run.state)
    dx, (dh0, dc0) = script.backward(run.layer, run.dy, caches, candidate, cell_road)
    got = {"x": dx, "h0": dh0, "c0": dc0, **named(run.layer, "grad")}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-14, err_msg=name)
    for name, value in named(run.layer).items():
        assert np.array_equal(value, before[name])


def document() -> str:
    return (ROOT / "docs/lstm-gradients.md").read_text(encoding="utf-8")


def stripped(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def runs_of(lines: Sequence[str], length: int) -> Iterator[list[str]]:
    for start in range(len(lines) - length + 1):
        yield list(lines[start : start + length])


def test_the_documents_code_is_the_codes() -> None:
    files = ("minidl/layers/lstm.py", "minidl/kernels/cpu/lstm.py")
    source = [line for file in files for line in stripped((ROOT / file).read_text(encoding="utf-8"))]
    blocks = re.findall(r"^```python\n(.*?)^```$", document(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    for block in blocks:
        quoted = stripped(block)
        assert quoted
        assert quoted in runs_of(source, len(quoted)), f"the code has no such run of lines:\n{block}"


def test_the_documents_errors_are_the_scripts(script: ModuleType) -> None:
    for cut, quantities in script.errors().items():
        for name, values in quantities.items():
            line = re.search(rf"^\| {re.escape(cut)} \| {name} \| (.*) \|$", document(), flags=re.MULTILINE)
            assert line, f"the document has no line for {cut!r}, {name}"
            np.testing.assert_allclose([float(cell) for cell in line[1].split("|")], values, atol=0.011)


def test_the_documents_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document()):
        assert (ROOT / "docs" / target).exists(), target
