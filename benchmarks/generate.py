"""How fast do minidl and PyTorch write poems?

    python benchmarks/generate.py                  characters a second, one poem at a time
    python benchmarks/generate.py --at-once 256    256 poems side by side
    python benchmarks/generate.py --shell          seconds from starting the program to its first printed poem

A model of the report's size with random weights writes poems of 49 characters (the end mark is made impossible),
sampled at temperature 0.7 from all characters. minidl uses the functions of examples/poetry, PyTorch those of
torch_generate.py: `torch` with nn.LSTM, `torch-cell` with nn.LSTMCell. With --shell every turn starts the program;
`floor` is Python that only imports NumPy.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import sizes
from harness import POETRY
from processes import Ready, Side
from results import FLOOR, Question, Ratio

sys.path.append(str(POETRY))
SIZE = sizes.MODELS["report"]
MARKS = ["<begin>", "<end>", "<unknown>"]
TOKENS = [*MARKS, *(chr(0x4E00 + number) for number in range(SIZE.vocabulary - len(MARKS)))]
LENGTH, TEMPERATURE = 49, 0.7
IMPOSSIBLE = -1e9  # the bias of an id that is never drawn


def main() -> None:
    parser = harness.parser(__doc__, rounds=10)
    parser.add_argument("--at-once", type=harness.whole, default=1, help="poems written side by side (default: 1)")
    parser.add_argument("--shell", action="store_true", help="time the program, start-up included")
    args = parser.parse_args()
    if args.shell and args.threads:
        parser.error("--threads does not reach the programs that --shell starts")
    if args.shell:
        sides = {"minidl": Side(shell_minidl), "torch": Side(shell_torch), FLOOR: Side(shell_floor)}
        question = Question("seconds", "seconds to the first poem", more_is_better=False, peers=("torch",))
    else:
        cell = functools.partial(build_torch, cell=True)
        sides = {"minidl": Side(build_minidl), "torch": Side(build_torch), "torch-cell": Side(cell)}
        question = Question(
            "rate",
            "characters a second",
            more_is_better=True,
            peers=("torch", "torch-cell"),
            ours_on_top=True,
            ratios={"ratio_lstm": Ratio("minidl", "torch")},
        )
    harness.run(sides, question, args)


def weights() -> list[np.ndarray]:
    """embedding, weight_ih, weight_hh, bias, head and head_bias, with the end mark forbidden."""
    made = list(sizes.weights(SIZE).values())
    made[-1][MARKS.index("<end>")] = IMPOSSIBLE
    return made


def ready(write: Any, at_once: int) -> Ready:
    """`write(count, argmax)` returns poems; with argmax they must be the same on both sides."""
    (poem,) = write(1, True)
    assert len(poem) == LENGTH
    write(at_once, False)
    characters = at_once * LENGTH
    return Ready(
        lambda: {"rate": characters / harness.median_seconds(lambda: write(at_once, False))},
        [float(ord(character)) for character in poem],
    )


def minidl_model() -> tuple[Any, Any]:
    """PoemModel and Vocabulary of examples/poetry."""
    from corpus.vocabulary import Vocabulary
    from model import PoemModel

    model = PoemModel(SIZE.vocabulary, SIZE.embedding, SIZE.hidden)
    for parameter, values in zip(model.parameters(), weights(), strict=True):
        parameter.data[...] = values
    return model, Vocabulary(TOKENS)


def torch_model(cell: bool = False) -> Any:
    """PoemModel of torch_generate.py or, with `cell`, the variant that is faster at single steps."""
    import torch
    from torch_generate import CellModel, PoemModel

    model = (CellModel if cell else PoemModel)(SIZE.vocabulary, SIZE.embedding, SIZE.hidden)
    embedding, weight_ih, weight_hh, bias, head, head_bias = map(torch.from_numpy, weights())
    lstm = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias, "bias_hh": torch.zeros_like(bias)}
    named = {"embedding.weight": embedding, "head.weight": head, "head.bias": head_bias}
    suffix = "" if cell else "_l0"
    model.load_state_dict({**named, **{f"lstm.{name}{suffix}": tensor for name, tensor in lstm.items()}})
    return model


def build_minidl(args: argparse.Namespace) -> Ready:
    from verse.writing import write_poems

    import minidl

    harness.hold(minidl, args)
    (model, vocabulary), rng = minidl_model(), np.random.default_rng(0)

    def write(count: int, argmax: bool) -> list[str]:
        how = {"argmax": True} if argmax else {"temperature": TEMPERATURE}
        return write_poems(model, vocabulary, [""] * count, LENGTH, rng=rng, **how)

    return ready(write, args.at_once)


def build_torch(args: argparse.Namespace, cell: bool = False) -> Ready:
    import torch
    from torch_generate import write_poems

    harness.hold(torch, args)
    model = torch_model(cell)
    return ready(lambda count, argmax: write_poems(model, TOKENS, count, LENGTH, TEMPERATURE, argmax), args.at_once)


def started_anew(*command: str) -> Ready:
    """Each turn starts this command and waits for its first line."""

    def turn() -> dict[str, float]:
        started = time.perf_counter()
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE) as program:
            assert program.stdout
            line = program.stdout.readline()
            seconds = time.perf_counter() - started
        if not line:
            raise SystemExit(f"{command[0]} printed nothing")
        return {"seconds": seconds}

    turn()
    return Ready(turn)


def folder() -> Path:
    """A temporary folder, removed when the process ends."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    return Path(made.name)


def shell_minidl(args: argparse.Namespace) -> Ready:
    from model import save_model

    path = folder() / "model.safetensors"
    save_model(path, *minidl_model(), max_length=LENGTH)
    return started_anew(str(POETRY / "generate.py"), "--model", str(path))


def shell_torch(args: argparse.Namespace) -> Ready:
    import torch

    path = folder() / "model.pt"
    torch.save({"tokens": TOKENS, "weights": torch_model().state_dict()}, path)
    return started_anew(str(Path(__file__).with_name("torch_generate.py")), "--model", str(path))


def shell_floor(args: argparse.Namespace) -> Ready:
    return started_anew("-c", "import numpy; print(numpy.zeros(1))")


if __name__ == "__main__":
    harness.main(main)
