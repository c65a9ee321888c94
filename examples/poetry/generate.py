"""Write poems with a trained model.

python examples/poetry/generate.py --start 月 --count 4
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import cli
import numpy as np
from model import load_model
from verse import MAX_LENGTH, TEMPERATURE, write_poems
from vocabulary import BEGIN, Vocabulary

GROUP = 256  # poems written side by side; more need memory and are no faster


def main() -> int:
    args = parse_arguments()
    path = args.model or newest_model(cli.RUNS)
    model, vocabulary, facts = load_model(path)
    start = in_vocabulary(args.start, vocabulary)
    if not start and BEGIN not in vocabulary:
        raise cli.UsageError(f"the model {path} needs a first character: give one with --start")
    rng = np.random.default_rng(args.seed)
    for written in range(0, args.count, GROUP):
        poems = write_poems(
            model,
            vocabulary,
            [start] * min(GROUP, args.count - written),
            args.max_length or facts.get("max_length", MAX_LENGTH),
            argmax=args.argmax,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            rng=rng,
        )
        print("\n".join(poems), flush=True)
    return 0


def parse_arguments() -> Namespace:
    parser = cli.Parser("Write poems with a model that train.py made.")
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help="a model.safetensors; without it the newest under runs/")
    add(
        "--start",
        type=cli.text,
        default="",
        metavar="TEXT",
        help="what the poem begins with; simplified characters are understood",
    )
    add("--count", type=cli.whole(1, 1_000_000), default=1, help="how many poems, one a line")
    add("--temperature", type=cli.positive, default=TEMPERATURE, help="below 1 plainer, above 1 wilder")
    add("--top-k", type=cli.whole(1), metavar="K", help="draw from the K likeliest characters alone")
    share = cli.real(lambda p: 0 < p <= 1, "above 0 and at most 1")
    add("--top-p", type=share, metavar="P", help="draw from the fewest characters that together have probability P")
    add("--argmax", action="store_true", help="take the likeliest character at every place, draw nothing")
    add("--max-length", type=cli.whole(1), help="characters a poem may have; without it the longest trained on")
    add("--seed", type=cli.whole(0), help="the same seed writes the same poems; without it they differ each time")
    args = parser.parse_args()
    for name in ("temperature", "top_k", "top_p"):
        if args.argmax and getattr(args, name) != parser.get_default(name):
            parser.error(f"--argmax draws nothing, so --{name.replace('_', '-')} has no meaning with it")
    return args


def newest_model(runs: Path) -> Path:
    found = sorted(runs.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise cli.UsageError(f"no model under {runs.resolve()}: train one with train.py, or name one with --model")
    cli.note(f"the model is {found[-1]}")
    return found[-1]


def in_vocabulary(start: str, vocabulary: Vocabulary) -> str:
    """`start` with every character that the vocabulary lacks in its traditional form; UsageError for a stranger."""
    start = "".join(character for character in start if character in vocabulary or not character.isspace())
    if all(character in vocabulary for character in start):
        return start
    import opencc  # only here: its dictionaries take time to load

    converted = opencc.OpenCC("s2t").convert(start)
    if len(converted) != len(start):
        converted = "".join(opencc.OpenCC("s2t").convert(character)[:1] for character in start)
    mixed = [ours if ours in vocabulary else theirs for ours, theirs in zip(start, converted, strict=True)]
    strangers = [character for character in mixed if character not in vocabulary]
    if strangers:
        raise cli.UsageError(f"--start has {'、'.join(strangers)}, which the model never met; try other characters")
    return "".join(mixed)


if __name__ == "__main__":
    cli.run(main)
