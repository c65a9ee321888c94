"""Export a trained model: to ONNX, for onnxruntime and browsers, or to PyTorch.

python examples/poetry/export.py --out poem.onnx
python examples/poetry/export.py --model runs/1/model.safetensors --out poem.safetensors
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from common import cli
from common.atomic_files import write_bytes
from corpus.tasks import MAX_LENGTH
from corpus.vocabulary import Vocabulary
from model import load_model

import minidl

FORMAT = 1  # of the metadata below; increase it when a field changes its meaning
SUFFIXES = (".onnx", ".safetensors")


def main() -> int:
    args = parse_arguments()
    if args.out.suffix == ".onnx":
        cli.require("onnx", "export")
    path = args.model or cli.newest_model()
    model, vocabulary, metadata = load_model(path)
    if args.out.exists() and args.out.samefile(path):
        raise cli.UsageError(f"--out {args.out} is the model itself")
    exported = export_metadata(vocabulary, metadata.get("max_length", MAX_LENGTH))
    if args.out.suffix == ".onnx":
        from verse.onnx_graph import poem_graph

        try:
            graph = poem_graph(model, exported)
        except ValueError as error:
            raise cli.UsageError(f"{path}: {error}") from None
        write_bytes(args.out, graph.SerializeToString(deterministic=True))
    else:
        minidl.interop.write_safetensors(args.out, model.state_dict(), exported, stacked=True)
    cli.note(f"{args.out.stat().st_size / 2**20:.1f} MiB in {args.out}")
    return 0


def export_metadata(vocabulary: Vocabulary, max_length: int) -> dict[str, str]:
    """The metadata that a program needs to write poems with the weights."""
    tokens = json.dumps(vocabulary.tokens, ensure_ascii=False)
    return {"poem_format": str(FORMAT), "tokens": tokens, "max_length": str(max_length)}


def parse_arguments() -> Namespace:
    parser = cli.Parser("Export a model trained by train.py as an ONNX graph, or as weights with PyTorch's names.")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="a model.safetensors (default: the newest under runs/, or the pretrained one)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".onnx for a graph, .safetensors for a PyTorch state dict; an existing file is replaced",
    )
    args = parser.parse_args()
    if args.out.suffix not in SUFFIXES:
        parser.error(f"argument --out: expected a name that ends in {' or '.join(SUFFIXES)}, got {str(args.out)!r}")
    return args


if __name__ == "__main__":
    cli.run(main)
