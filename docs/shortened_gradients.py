"""What a shortened LSTM gradient costs: the tables and the figure of lstm-gradients.md.

    OMP_NUM_THREADS=1 python docs/shortened_gradients.py  prints the tables, in about two minutes
    python docs/shortened_gradients.py --figure FILE.png  draws the figure (needs matplotlib)

One BLAS thread, because a second one only slows down products as small as these. Every cut is made on minidl's own
backward pass, so nothing else differs: the sequence is processed in chunks of one step, and gradients are cut between
chunks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minidl import LSTM, Adam, Embedding, LinearCrossEntropy, Packing
from minidl.layers.lstm import LSTMCache, State

Caches = list[LSTMCache]  # one per time step

QUANTITIES = ("weight_ih", "weight_hh", "bias", "x", "h0", "c0")
CUTS = {  # whether to keep (the path through the candidate, the cell road)
    "no candidate": (False, True),
    "h road only": (True, False),
}
VARIANTS = {"whole": (True, True), **CUTS, "both cuts": (False, False)}
LENGTHS = (1, 2, 5, 10, 50)  # time steps of the error tables
DELAYS = (5, 10, 20, 30)  # time steps of the task
TOKENS, STEPS = 8, 500  # vocabulary and training steps of the task
H, INPUTS, B = 32, 16, 8


def forward(layer: LSTM, x: np.ndarray, sizes: Sequence[int], state: State | None = None) -> tuple[np.ndarray, Caches]:
    """(y, caches): LSTM.forward in chunks of one time step, each starting from the previous chunk's state."""
    outputs, caches, start = [], [], 0
    for n in sizes:
        y, cache = layer.forward(x[start : start + n], Packing([n]), state)
        outputs.append(y)
        caches.append(cache)
        state, start = cache.state, start + n
    return np.concatenate(outputs), caches


def backward(
    layer: LSTM, dy: np.ndarray, caches: Caches, candidate: bool, cell_road: bool
) -> tuple[np.ndarray, State | None]:
    """(dx, gradient of the initial state): in full, or without the path from dz_g to dh_{t-1} and dx_t, or with
    dc_{t-1} = 0."""
    end, parts, dstate = len(dy), [], None
    with _candidate_cut(layer, not candidate):
        for cache in reversed(caches):
            n = len(cache.x)
            parts.append(layer.backward(dy[end - n : end], cache, dstate))
            dh, dc = cache.dstate
            if not cell_road:
                dc[:n] = 0
            dstate, end = (dh, dc), end - n
    return np.concatenate(parts[::-1]), dstate


@contextmanager
def _candidate_cut(layer: LSTM, cut: bool) -> Iterator[None]:
    # backward uses the weights only for dz W_hh and dz W_ih, so zeros there cut the path.
    rows = slice(2 * layer.hidden_size, 3 * layer.hidden_size)
    blocks = [weight.data[rows] for weight in (layer.weight_ih, layer.weight_hh)]
    kept = [block.copy() for block in blocks]
    if cut:
        for block in blocks:
            block[...] = 0
    yield
    for block, values in zip(blocks, kept, strict=True):
        block[...] = values


def gradients(layer: LSTM, dy: np.ndarray, caches: Caches, candidate: bool, cell_road: bool) -> dict[str, np.ndarray]:
    """All gradients, under the names in QUANTITIES."""
    for parameter in layer.parameters():
        parameter.grad[...] = 0
    dx, (dh0, dc0) = backward(layer, dy, caches, candidate, cell_road)
    found = {name: parameter.grad.copy() for name, parameter in layer.named_parameters()}
    return {**found, "x": dx, "h0": dh0, "c0": dc0}


def random_run(length: int, seed: int, forget_bias: float = 0.0) -> tuple[LSTM, np.ndarray, Caches]:
    """A new float64 LSTM, a random dL/dy for each of `length` steps of noise input, and the forward caches."""
    rng = np.random.default_rng(seed)
    layer = LSTM(INPUTS, H, dtype="float64", rng=rng)
    layer.bias.data[H : 2 * H] = forget_bias
    x = rng.normal(size=(length * B, INPUTS))
    h0, c0 = rng.normal(scale=0.5, size=(2, B, H))
    y, caches = forward(layer, x, [B] * length, (h0, c0))
    return layer, rng.normal(size=y.shape), caches


def relative_error(wrong: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(wrong - right) / np.linalg.norm(right))


def errors(seeds: int = 5) -> dict[str, dict[str, list[float]]]:
    """Mean relative errors of the cut gradients: {cut: {quantity: one value for each of LENGTHS}}."""
    table: dict[str, dict[str, list[float]]] = {cut: {name: [] for name in QUANTITIES} for cut in CUTS}
    table["diag[z_t]"] = {"weight_hh": []}
    for length in LENGTHS:
        runs = [random_run(length, seed) for seed in range(seeds)]
        right = [gradients(*run, True, True) for run in runs]
        for cut, kept in CUTS.items():
            wrong = [gradients(*run, *kept) for run in runs]
            for name in QUANTITIES:
                found = [relative_error(w[name], r[name]) for w, r in zip(wrong, right, strict=True)]
                table[cut][name].append(float(np.mean(found)))
        diagonals = [relative_error(diagonal_only(r["weight_hh"]), r["weight_hh"]) for r in right]
        table["diag[z_t]"]["weight_hh"].append(float(np.mean(diagonals)))
    return table


def diagonal_only(grad: np.ndarray) -> np.ndarray:
    """What remains of (4H, H) with diag[h_{t-1}] in place of an outer product: the diagonals of the four blocks."""
    return grad * np.tile(np.eye(grad.shape[1]), (4, 1))


def reach(distance: int, forget_bias: float, kept: tuple[bool, bool], seeds: int = 5) -> np.ndarray:
    """|dL/dx_{T-k}| for k = 0 ... distance, geometric mean over seeds; L depends only on y_T."""
    norms = []
    for seed in range(seeds):
        layer, dy, caches = random_run(distance + 1, seed, forget_bias)
        dy[:-B] = 0
        dx = gradients(layer, dy, caches, *kept)["x"]
        norms.append(np.linalg.norm(dx.reshape(distance + 1, -1), axis=1)[::-1])
    return np.exp(np.log(norms).mean(axis=0))


def remember_first(length: int, seed: int, kept: tuple[bool, bool]) -> float:
    """Train to name the first of `length` random tokens after reading them all; accuracy on the last 50 batches."""
    rng, batch = np.random.default_rng(seed), 32
    embedding, layer = Embedding(TOKENS, INPUTS, rng=rng), LSTM(INPUTS, H, rng=rng)
    head = LinearCrossEntropy(H, TOKENS, rng=rng)
    layer.bias.data[H : 2 * H] = 2  # open forget gates (0.88), so that there is a cell road to cut
    optimizer = Adam(embedding.parameters() + layer.parameters() + head.parameters(), lr=0.01)
    right = []
    for _ in range(STEPS):
        ids = rng.integers(0, TOKENS, (length, batch))
        x, seen = embedding.forward(ids.reshape(-1))
        y, caches = forward(layer, x, [batch] * length)
        last = y[-batch:]
        right.append(np.mean(head.logits(last).argmax(axis=1) == ids[0]))
        optimizer.zero_grad()
        dy = np.zeros_like(y)
        dy[-batch:] = head.forward_backward(last, ids[0])[1]
        embedding.backward(backward(layer, dy, caches, *kept)[0], seen)
        optimizer.step()
    return float(np.mean(right[-50:]))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_tables() -> None:
    rows = [
        [cut, name, *(f"{value:.2f}" for value in values)]
        for cut, quantities in errors().items()
        for name, values in quantities.items()
    ]
    print(markdown(["cut", "gradient of", *(f"T = {length}" for length in LENGTHS)], rows), flush=True)
    rows = []
    for length in DELAYS:
        scores = [[remember_first(length, seed, kept) for seed in range(3)] for kept in VARIANTS.values()]
        rows.append([str(length), *(f"{np.mean(s):.2f} ({min(s):.2f} to {max(s):.2f})" for s in scores)])
    print("\n" + markdown(["T", *VARIANTS], rows))


def draw(path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    distance = 40
    styles = {"whole": "-", "no candidate": "--", "h road only": "-", "both cuts": "--"}
    colours = {"whole": "C0", "no candidate": "C0", "h road only": "C3", "both cuts": "C3"}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, forget_bias in zip(axes, (0.0, 2.0), strict=True):
        for variant, kept in VARIANTS.items():
            size = reach(distance, forget_bias, kept)
            axis.plot(size, styles[variant], color=colours[variant], label=variant)
        axis.set_yscale("log")
        axis.set_ylim(1e-16, 1e1)
        axis.set_xlim(0, distance)
        gate = 1 / (1 + np.exp(-forget_bias))
        axis.set_title(f"forget bias {forget_bias:.0f}: f about {gate:.2f}", fontsize=10)
        axis.set_xlabel("k, time steps between input and loss")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(r"$\| \partial L_T / \partial x_{T-k} \|$")
    axes[1].legend(fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figure", metavar="FILE.png", help="draw the figure instead of printing tables")
    arguments = parser.parse_args()
    if arguments.figure:
        draw(arguments.figure)
    else:
        print_tables()
