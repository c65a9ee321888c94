"""How long does a character LSTM train until its validation loss on a text is at most --bar?

    python benchmarks/char_lstm.py input.txt

`minidl` is examples/char_lstm.py, `torch` the same program on torch.nn (torch_char_lstm.py): the same model, recipe and
chunks in the same order, each with its library's own random initial weights. A turn runs the program as a user would,
until the validation loss that it prints is at most --bar; its seconds are those that the program prints. All other
options, such as --epochs or --hidden-size, are passed to both programs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness
from processes import BenchmarkError, Ready, Side
from results import Question, footer, layout

HERE = Path(__file__).resolve().parent
LINE = re.compile(r"epoch (\d+): training [\d.]+, validation ([\d.]+) nats/char, ([\d.]+) s")


def main() -> None:
    parser = harness.parser(__doc__, rounds=1)
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("--bar", type=float, default=1.55, help="loss to reach, nats a character (default: 1.55)")
    args, args.options = parser.parse_known_args()
    if not args.text.is_file():
        raise BenchmarkError(f"there is no file {args.text}")
    question = Question("seconds", "seconds to the bar", more_is_better=False, peers=("torch",))
    programs = {"minidl": HERE.parent / "examples" / "char_lstm.py", "torch": HERE / "torch_char_lstm.py"}
    sides = {name: Side(building(name, path)) for name, path in programs.items()}
    harness.run(sides, question, args, table=table)


def table(question: Question, result: Mapping[str, Any]) -> str:
    """A row for each side: its seconds, and the epochs and the loss it stopped at."""
    rows = [("", question.unit, "quartiles", "epochs", "nats a character")]
    for side, figures in result["figures"].items():
        low, high = result["spread"][side]
        cells = f"{figures['seconds']:.0f}", f"{low:.0f} to {high:.0f}", f"{figures['epochs']:.0f}"
        rows.append((side, *cells, f"{figures['loss']:.3f}"))
    return "\n".join([*layout(rows), *footer(question, result)])


def building(name: str, program: Path) -> Callable[[argparse.Namespace], Ready]:
    """A function that builds the side; it imports the library only to report its version."""

    def build(args: argparse.Namespace) -> Ready:
        __import__(name)
        command = [sys.executable, str(program), str(args.text), *args.options]
        return Ready(lambda: turn(command, args.bar))

    return build


def turn(command: list[str], bar: float) -> dict[str, float]:
    """Run the program until its loss is at most `bar`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as program:
        assert program.stdout is not None
        loss = float("nan")
        for line in program.stdout:
            if found := LINE.match(line):
                epoch, loss, seconds = int(found[1]), float(found[2]), float(found[3])
                if loss <= bar:
                    program.kill()
                    return {"seconds": seconds, "epochs": epoch, "loss": loss}
    if program.returncode:
        raise BenchmarkError(f"{command[1]} failed with exit code {program.returncode}")
    raise BenchmarkError(f"{Path(command[1]).name} ended with {loss:.3f} nats a character, not {bar:g}")


if __name__ == "__main__":
    harness.main(main)
