"""Halve a trained model's file size with float16 weights, and measure what that costs in perplexity.

python examples/poetry/shrink.py runs/1 --out examples/poetry/pretrained
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from common import cli
from corpus import line_index, tang
from corpus.line_index import LineIndex
from corpus.tasks import Task, packed_task
from learning import sources
from learning.metrics import figures_text
from learning.training import held_out_figures
from model import PoemModel, load_model

import numpy as np

import minidl

FILE = "model.safetensors"


def main() -> int:
    args = parse_arguments()
    model, vocabulary, metadata = load_model(args.run / FILE)
    made = metadata.get("arguments") or {}
    others = any(made.get(name) for name in ("text", "protocol", "prepared"))
    if not {"text", "protocol", "files", "max_length"} <= made.keys() or others:
        raise cli.UsageError(f"{args.run / FILE} was not trained on the Tang poems by a recipe of train.py")
    try:
        index = LineIndex.load(args.run / line_index.FILE)
    except ValueError as error:
        raise cli.UsageError(str(error)) from None
    with cli.results_folder(args.out) as out:
        found = Namespace(text=None, corpus=args.corpus, files=made["files"], max_length=made["max_length"])
        task = packed_task(sources.read_parts(found), vocabulary, batch_size=256)
        shrink(args.run / FILE, out, model, task, index)
    return 0


def shrink(run: Path, out: Path, model: PoemModel, task: Task, index: LineIndex) -> None:
    """Write the float16 model with its figures, and the index of lines, to `out`: both or neither."""
    figures = {"float32": held_out_figures(model, task)}
    tensors, metadata = minidl.load(run)
    made = metadata["arguments"]
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    model.load_state_dict(half)
    figures["float16"] = held_out_figures(model, task)
    settings = {name: value for name, value in made.items() if name != "corpus"}  # a folder on this machine
    minidl.save(out / FILE, half, {**metadata, "arguments": settings, "figures": figures["float16"]})
    try:
        index.save(out / line_index.FILE)
    except BaseException:
        (out / FILE).unlink()
        raise
    for kind, values in figures.items():
        for part in ("test", "short_test"):
            if f"{part}_loss" in values:
                cli.note(f"{kind}  {part.replace('_', ' ')} {figures_text(values, part)}")
    size = sum((out / name).stat().st_size for name in (FILE, line_index.FILE))
    cli.note(f"{size / 2**20:.1f} MiB in {out}, with the index of its corpus's lines")


def parse_arguments() -> Namespace:
    parser = cli.Parser("Halve a model trained by train.py, and measure what that costs.")
    parser.add_argument("run", type=Path, help="the folder that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the small model")
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="a folder with the Tang files (default: they are downloaded)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main, tang.CorpusError)
