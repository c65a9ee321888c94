"""Make a trained model half as large, to hand around: float16 weights, with what they cost in perplexity.

python examples/poetry/shrink.py runs/1 --out examples/poetry/pretrained
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import cli
import copies
import numpy as np
import train
from model import load_model
from tasks import packed_task
from training import held_out_figures

import minidl

FILE = "model.safetensors"


def main() -> int:
    args = parse_arguments()
    model, vocabulary, facts = load_model(args.run / FILE)
    made = facts.get("arguments")
    if made is None or made["text"] is not None or made["protocol"] is not None:
        raise cli.UsageError(f"{args.run / FILE} was not trained on the Tang poems by a recipe of train.py")
    found = Namespace(text=None, corpus=args.corpus, files=made["files"], max_length=made["max_length"])
    task = packed_task(train.read_parts(found), vocabulary, batch_size=256)

    figures = {"float32": held_out_figures(model, task)}
    args.out.mkdir(parents=True, exist_ok=True)
    tensors, metadata = minidl.load(args.run / FILE)
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    model.load_state_dict(half)
    figures["float16"] = held_out_figures(model, task)
    settings = {name: value for name, value in made.items() if name != "corpus"}  # a folder of here
    minidl.save(args.out / FILE, half, {**metadata, "arguments": settings, "figures": figures["float16"]})
    shutil.copyfile(args.run / copies.FILE, args.out / copies.FILE)
    for kind, values in figures.items():
        for part in ("test", "short_test"):
            if f"{part}_loss" in values:
                cli.note(f"{kind}  {part.replace('_', ' ')} {train.figures_text(values, part)}")
    size = sum((args.out / name).stat().st_size for name in (FILE, copies.FILE))
    cli.note(f"{size / 2**20:.1f} MiB in {args.out}, with the index of its corpus's lines")
    return 0


def parse_arguments() -> Namespace:
    parser = cli.Parser("Halve a model that train.py made, and measure what that costs.")
    parser.add_argument("run", type=Path, help="the folder that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the small model goes")
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="a folder with the Tang files; else they are fetched"
    )
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
