"""train.py's command line: its options, the recipes that set many of them, and which can be combined."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import cli
from corpus import texts
from corpus.tasks import MAX_LENGTH
from learning import protocol, run_checkpoint

LEARNING_RATES = {"adam": 0.005, "adagrad": 0.03, "adadelta": 1.0, "sgd": 1.0}
DEFAULTS = {
    "backend": "numpy",
    "optimizer": "adam",
    "seed": 0,
    "files": 8,
    "max_length": MAX_LENGTH,
    "max_vocabulary": None,
    "min_count": 2,
    "schedule": "constant",
    "epochs": 40,
    "patience": 3,
    "batch_size": 256,
    "hidden_size": 256,
    "embedding_size": 128,
    "layers": 1,
    "dropout": 0.3,
    "tied": False,
    "clip": 1.0,
    "weight_decay": None,
}
ALL_FILES: dict[str, Any] = {
    "files": 58,
    "max_length": 64,  # a regulated poem of eight lines of seven characters
    "min_count": 10,
    "schedule": "one-cycle",
    "tied": True,
}
RECIPES: dict[str, dict[str, Any]] = {  # changes to DEFAULTS; patience lets the schedule reach its end
    "default": {},
    "best": {
        **ALL_FILES,
        "lr": 0.006,
        "epochs": 16,
        "patience": 16,
        "batch_size": 32,
        "embedding_size": 256,
        "dropout": 0.25,
        "weight_decay": 0.05,
    },
    "large": {
        **ALL_FILES,
        "lr": 0.003,
        "epochs": 5,
        "patience": 5,
        "batch_size": 32,
        "layers": 2,
        "hidden_size": 512,
        "embedding_size": 512,
        "dropout": 0.35,
    },
}
TANG = ("corpus", "files", "max_length")  # which Tang poems
POEMS = ("text", "encoding", *TANG, "max_vocabulary", "min_count")  # fixed by a prepared folder
NOT_SETTINGS = ("out", "resume", "distributed", "checkpoint_every", "tensorboard", "typed", "checkpoint")
# when a run is resumed; its poems must be the same
MAY_CHANGE = ("backend", "corpus", "text", "encoding", "prepared", "init_from")


def parse_arguments() -> Namespace:
    parser = cli.Parser("Train an LSTM on the Tang poems; writes metrics, curves, poems and the best model to --out.")

    add = adder(parser)
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    share = cli.real(lambda p: 0 <= p < 1, "from 0 to below 1")
    add("--backend", "numpy: the CPU; cupy: an NVIDIA GPU", choices=["numpy", "cupy"])
    add_poems(add)
    add("--prepared", "train on what prepare.py wrote there; it may be larger than memory", type=Path, metavar="DIR")
    recipe = "best: defaults with the lowest perplexity; large: two layers of 512"
    add("--recipe", recipe, choices=list(RECIPES))
    protocols = (
        "report: the report's experiment, whose settings replace the defaults below; report-rows: its poems, targets "
    )
    protocols += "and test part, without pads, with any settings"
    add("--protocol", protocols, choices=list(protocol.PROTOCOLS))
    add("--optimizer", "the update rule", choices=list(LEARNING_RATES))
    add("--lr", f"learning rate (default: {rates})", type=cli.positive)
    add("--schedule", "one-cycle: one rise to --lr and one fall over all epochs", choices=["constant", "one-cycle"])
    add("--epochs", "at most this many passes over the training part", type=cli.whole(1))
    add("--patience", "stop after this many epochs in a row without improvement", type=cli.whole(1))
    add("--batch-size", "poems per step", type=cli.whole(1))
    add("--hidden-size", "units of the LSTM", type=cli.whole(1, 65536))
    add("--embedding-size", "size of a character's vector", type=cli.whole(1, 65536))
    add("--layers", "number of stacked LSTMs", type=cli.whole(1, 64))
    add("--tied", "share the embedding's weight with the projection", action=argparse.BooleanOptionalAction)
    add("--dropout", "share of units that a training step drops", type=share)
    decay = "only with adam: each step shrinks every weight by this share times the learning rate (AdamW)"
    add("--weight-decay", decay, type=cli.real(lambda share: share >= 0, "of at least 0"))
    add("--clip", "largest norm of the gradient", type=cli.positive)
    add("--out", "a new folder for the results (default: runs/1, runs/2, ...)", type=Path, metavar="DIR")
    add(
        "--init-from",
        "start from this model's weights; sizes and characters must be the same",
        type=Path,
        metavar="FILE",
    )
    add("--seed", "seed of all random numbers", type=cli.whole(0))
    add("--resume", "continue the run in --out, or else the one under runs/ that was saved last", action="store_true")
    add("--checkpoint-every", "also save after every so many steps", type=cli.whole(1), metavar="STEPS")
    add(
        "--distributed",
        "this is one of the processes that mpiexec started, which share every batch",
        action="store_true",
    )
    add("--tensorboard", "also log the curves there for TensorBoard", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.tensorboard:
        cli.require("tensorboardX", "tensorboard")
    args.out = args.out or (cli.newest_run() if args.resume else cli.next_run())
    args.checkpoint = run_checkpoint.read(args.out) if args.resume else None
    if args.checkpoint is not None:  # its arguments come first, so that those typed now override them
        parser.parse_args([*args.checkpoint.metadata["typed"], *sys.argv[1:]], args)
    check_poems(parser, args)
    exclude(parser, args, "prepared", (*POEMS, "protocol"))
    exclude(parser, args, "init_from", ("protocol",))
    args.typed = typed(args)
    settle(parser, args)
    if args.checkpoint is not None:
        check_the_same(parser, args, args.checkpoint.metadata["arguments"])
    return args


def adder(parser: cli.Parser) -> Callable[..., None]:
    """A function that adds an option; defaults appear only in the help, so anything but None was typed."""

    def add(name: str, help: str, **how: Any) -> None:
        default = DEFAULTS.get(name[2:].replace("-", "_"))
        parser.add_argument(name, help=help if default in (None, False) else f"{help} (default: {default})", **how)

    return add


def add_poems(add: Callable[..., None]) -> None:
    """The options that choose the poems, and which of their characters are known."""
    add("--corpus", "a folder with poet.tang.N.json files; without it they are fetched", type=Path, metavar="DIR")
    add("--files", "how many of the 58 Tang files, from the first", type=cli.whole(1, 58))
    add("--text", "train on this text instead, one poem or passage per line", type=Path, metavar="FILE")
    name = "the encoding of --text, as Python names it (default: utf-8)"
    add("--encoding", name, type=texts.encoding, metavar="NAME")
    add("--max-length", "leave out longer poems", type=cli.whole(1))
    add("--max-vocabulary", "keep only the N most frequent characters", type=cli.whole(1), metavar="N")
    add("--min-count", "keep only characters seen at least this often", type=cli.whole(1))


def check_poems(parser: cli.Parser, args: Namespace) -> None:
    """Error if the options of `add_poems` contradict each other."""
    exclude(parser, args, "text", TANG)
    if args.encoding is not None and args.text is None:
        parser.error("--encoding needs --text")


def option(name: str) -> str:
    """The option as it is typed."""
    return f"--{name.replace('_', '-')}"


def exclude(parser: cli.Parser, args: Namespace, name: str, others: Sequence[str]) -> None:
    """Error if the option `name` was typed together with one of `others`."""
    for other in others:
        if getattr(args, name) is not None and getattr(args, other) is not None:
            parser.error(f"{option(name)} and {option(other)} exclude each other")


def typed(args: Namespace) -> list[str]:
    """The settings that were typed, as they could be typed again."""
    words = []
    for name, value in as_json(args).items():
        if isinstance(value, bool):
            words.append(option(name) if value else option(f"no_{name}"))
        elif value is not None:
            words.append(f"{option(name)}={value}")
    return words


def check_the_same(parser: cli.Parser, args: Namespace, before: dict[str, Any]) -> None:
    """Error if the settings differ from those of the run to resume."""
    now = as_json(args)
    for name in now:
        if name not in MAY_CHANGE and now[name] != before.get(name):
            now_typed = f"{option(name)} {now[name]}"
            parser.error(f"{now_typed} does not go with --resume: the run in {args.out} has {before.get(name)}")


def settle(parser: cli.Parser, args: Namespace) -> None:
    """Fill in what was not given; the report's protocol fixes most settings, and contradicting it is an error."""
    as_it_was = args.protocol == "report"
    settings: dict[str, Any] = protocol.PROTOCOLS.get(args.protocol, {})
    if args.protocol and args.text:
        parser.error(f"--text does not go with --protocol {args.protocol}")
    if as_it_was and args.recipe:
        parser.error("--recipe does not go with --protocol report")
    if as_it_was and args.optimizer not in (None, *protocol.LEARNING_RATES):
        parser.error(f"--protocol report knows the optimizers {', '.join(protocol.LEARNING_RATES)}")
    if as_it_was and args.epochs is None:
        args.epochs = protocol.EPOCHS
    if args.weight_decay and args.optimizer not in (None, "adam"):
        parser.error(f"--weight-decay goes with --optimizer adam alone, got {args.optimizer}")
    recipe = RECIPES[args.recipe or "default"]
    for name, default in {**DEFAULTS, **recipe}.items():
        fixed = None if args.prepared and name in POEMS else settings.get(name, default)
        if getattr(args, name) is None:
            setattr(args, name, fixed)
        elif name in settings:
            parser.error(f"{option(name)} does not go with --protocol {args.protocol}, which fixes it")
    if args.optimizer != "adam" or args.weight_decay == 0:
        args.weight_decay = None
    args.lr = args.lr or (protocol.LEARNING_RATES if as_it_was else LEARNING_RATES)[args.optimizer]
    if args.tied and args.embedding_size != args.hidden_size:
        parser.error(
            f"--tied needs --embedding-size {args.hidden_size}, as --hidden-size is; got {args.embedding_size}"
        )


def as_json(args: Namespace) -> dict[str, int | float | str | None]:
    """The run's settings for its files. A path may contain bytes that are not UTF-8, JSON must not."""
    return {
        name: value
        if value is None or isinstance(value, (int, float))
        else os.fsencode(str(value)).decode("utf-8", "replace")
        for name, value in vars(args).items()
        if name not in NOT_SETTINGS
    }
