"""A lower bound on the time of a training step of the report's model on a GPU: the calculations behind gpu.md.

    python docs/roofline.py

Nothing is measured. Each device call takes at least its operations divided by the chip's peak rate, and at least the
bytes it reads and writes, once each, divided by the memory bandwidth; calls run one after the other. Ignoring caches
overestimates the bytes; assuming peak rates underestimates the time.
"""

from __future__ import annotations

from typing import NamedTuple

BATCH, STEPS, EMBEDDING, HIDDEN, VOCABULARY = 256, 50, 128, 256, 3602
FLOAT = 4  # bytes
CALLS_A_STEP, OTHER_CALLS = 4, 40  # the budget of device calls: per time step, and for the rest
HOST = 10e-6  # seconds, assumed: the host's time for one device call in Python, CuPy and the driver


class Chip(NamedTuple):
    """Peaks from NVIDIA's data sheets: float32 operations (no tensor cores) and bytes of memory, both per second."""

    name: str
    flops: float
    bandwidth: float


CHIPS = [
    Chip("A100 40 GB", 19.5e12, 1.555e12),
    Chip("A100 80 GB", 19.5e12, 2.039e12),
    Chip("H100 SXM", 66.9e12, 3.35e12),
]


class Call(NamedTuple):
    """One device call, or `times` identical ones: a matrix product if `flops` is not 0, otherwise a kernel."""

    part: str
    flops: float  # of matrix products only; a kernel's time is its memory traffic
    values: float  # read and written
    times: int = 1

    def seconds(self, chip: Chip) -> float:
        """A lower bound."""
        return self.times * max(self.flops / chip.flops, self.values * FLOAT / chip.bandwidth)


def product(part: str, m: int, n: int, k: int, times: int = 1, adds: bool = False) -> Call:
    """(m, k) times (k, n) into (m, n), which is also read if the product adds to it."""
    return Call(part, 2 * m * n * k, m * k + k * n + m * n * (2 if adds else 1), times)


PARTS = ["embedding forward", "LSTM forward", "head and loss", "LSTM backward", "embedding backward"]
PARTS += ["clipping", "optimizer"]


def calls(batch: int = BATCH) -> list[Call]:
    """All calls of a training step, in order."""
    T, E, H, V = STEPS, EMBEDDING, HIDDEN, VOCABULARY
    rows, gates, state = batch * T, 4 * H, batch * H
    weights = V * E + gates * (E + H + 1) + V * (H + 1)
    forward, head, backward = "LSTM forward", "head and loss", "LSTM backward"
    return [
        Call("embedding forward", 0, 2 * rows * E),
        product(forward, rows, gates, E),  # x W_ih' for all time steps
        product(forward, batch, gates, H, T, adds=True),  # + h W_hh'
        Call(forward, 0, (4 + 1 + 4 + 2 + 1) * state, T),  # reads z and c; writes the gates, h twice, and c
        product(head, rows, V, H),  # logits, in blocks of rows
        Call(head, 0, 2 * rows * V),  # softmax and its gradient, in place
        product(head, rows, H, V),  # dh
        product(head, V, H, rows),  # dW
        Call(head, 0, rows * V),  # db
        Call(backward, 0, (4 + 1 + 3 + 4 + 1) * state, T),  # reads the gates, c, dy, dh and dc; writes dz and dc
        product(backward, batch, H, gates, T),  # dh = dz W_hh
        product(backward, rows, E, gates),  # dx
        product(backward, gates, E, rows),  # dW_ih
        product(backward, gates, H, rows),  # dW_hh
        Call(backward, 0, rows * gates),  # db
        Call("embedding backward", 0, rows * E + V * E),
        Call("clipping", 0, weights),
        Call("optimizer", 0, 8 * weights),  # Adam reads four arrays and writes four, including the zeroed gradient
    ]


def main() -> None:
    print("\n\n".join("\n".join(lines) for lines in (by_part(), by_time_step(), by_batch())))


def by_part() -> list[str]:
    """One row per part: operations, bytes, and the minimum milliseconds on each chip."""
    lines = table("part", "GFLOP", "MB", *(f"{chip.name} (ms)" for chip in CHIPS))
    for part in (*PARTS, "step"):
        some = [call for call in calls() if part in (call.part, "step")]
        flops = sum(call.flops * call.times for call in some) / 1e9
        size = sum(call.values * call.times for call in some) * FLOAT / 1e6
        lines.append(row(part, f"{flops:.2f}", f"{size:,.0f}", *(f"{milliseconds(some, chip):.3f}" for chip in CHIPS)))
    return lines


def by_time_step() -> list[str]:
    """One row for each of the four calls of a time step, in microseconds."""
    lines = table("one time step", "MFLOP", "MB", *(f"{chip.name} (µs)" for chip in CHIPS))
    names = ["forward: product", "forward: kernel", "backward: kernel", "backward: product"]
    once = [call._replace(times=1) for call in calls() if call.times == STEPS]
    for name, some in [*((name, [call]) for name, call in zip(names, once, strict=True)), ("all four", once)]:
        size = sum(call.values for call in some) * FLOAT / 1e6
        least = [f"{1000 * milliseconds(some, chip):.1f}" for chip in CHIPS]
        lines.append(row(name, f"{sum(call.flops for call in some) / 1e6:.0f}", f"{size:.2f}", *least))
    return lines


def by_batch() -> list[str]:
    """One row per batch size: device time, host time, and the characters per second that the longer one allows."""
    lines = table("batch", "host (ms)", *(f"{chip.name} (ms): chars/s at most" for chip in CHIPS))
    host = (STEPS * CALLS_A_STEP + OTHER_CALLS) * HOST
    for batch in (16, 64, 128, 256, 512, 1024):
        cells = []
        for chip in CHIPS:
            least = milliseconds(calls(batch), chip)
            longer = max(least / 1000, host)
            bound = "host" if longer == host else "device"
            cells.append(f"{least:.2f}: {batch * STEPS / longer:,.0f}, {bound}")
        lines.append(row(str(batch), f"{host * 1000:.2f}", *cells))
    return lines


def milliseconds(some: list[Call], chip: Chip) -> float:
    return 1000 * sum(call.seconds(chip) for call in some)


def table(*titles: str) -> list[str]:
    return [row(*titles), row(*["---"] * len(titles))]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
