"""Train an LSTM on the Tang poems, watch it learn, and read what it writes.

python examples/poetry/train.py                     the default recipe, on the report's 8 files
python examples/poetry/train.py --recipe best       the recipe with the lowest perplexity, on all 58 files
python examples/poetry/train.py --protocol report   the report's own experiment, as it was
python examples/poetry/train.py --protocol report-rows --recipe best    its poems and test part, learned better
python examples/poetry/train.py --text FILE         your own poems or prose, one a line
"""

from __future__ import annotations

import argparse
import gc
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import cli
import copies
import corpus
import numpy as np
import protocol
from copies import LineIndex
from model import PoemModel, save_model
from training import Diverged, Joined, Task, build_optimizer, fit, held_out_figures, packed_task
from verse import MAX_LENGTH, STARTS, write_poems
from vocabulary import Vocabulary
from whole_files import write_text

import minidl
from minidl.schedules import Schedule

LEARNING_RATES = {"adam": 0.005, "adagrad": 0.03, "adadelta": 1.0, "sgd": 1.0}
DEFAULTS = {
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
    "dropout": 0.3,
    "tied": False,
    "clip": 1.0,
}
RECIPES: dict[str, dict[str, Any]] = {  # what they change of it
    "default": {},
    "best": {
        "files": 58,
        "max_length": 64,  # a regulated poem of eight seven-character lines
        "min_count": 10,
        "lr": 0.004,
        "schedule": "one-cycle",
        "epochs": 16,
        "patience": 16,  # the schedule has to come to its end
        "batch_size": 128,
        "embedding_size": 256,
        "dropout": 0.35,
        "tied": True,
    },
}
MAX_PIECE = 200  # longer lines of a --text are cut, since a batch takes as many steps as its longest


def main() -> int:
    args = parse_arguments()
    minidl.backend.get(args.backend)
    remedy = "end what else uses it" if args.protocol == "report" else "a smaller --batch-size needs less"
    with cli.results_folder(args.out) as out:
        try:
            with cli.memory_advice(remedy, lambda: kept(out)):
                return train(args, out)
        except KeyboardInterrupt:
            cli.note(f"interrupted; {kept(out)}")
            return 130


def kept(out: Path) -> str:
    """What a run that ends early leaves behind."""
    return f"the best epoch so far is in {out}" if (out / "model.safetensors").exists() else "no epoch was finished"


def train(args: Namespace, out: Path) -> int:
    task, index = report_task(args) if args.protocol else default_task(args)

    rng = np.random.default_rng(args.seed)
    sizes = args.embedding_size, args.hidden_size, args.dropout, args.tied
    model = PoemModel(len(task.vocabulary), *sizes, backend=args.backend, rng=rng)
    schedule = build_schedule(args, model, task)
    weights = sum(parameter.data.size for parameter in model.parameters())
    cli.note(f"{weights:,} weights, {args.optimizer} with learning rate {args.lr:g}, seed {args.seed}, into {out}")

    epochs = fit(  # a generator: each turn of the loop below trains one epoch
        model,
        schedule,
        task,
        epochs=args.epochs,
        patience=args.patience,
        clip=args.clip,
        pads_count=args.protocol == "report",
        rng=rng,
    )
    facts = {"max_length": task.max_length, "arguments": as_json(args)}
    lines = []
    with cli.metrics_file(out) as write:
        for line, improved in epochs:
            lines.append(line)
            if improved:  # saved first: the metrics never speak of a model that is not on the disk
                save_model(out / "model.safetensors", model, task.vocabulary, epoch=line["epoch"], **facts)
                index.save(out / copies.FILE)  # for generate.py --no-copy
            write(line)
            cli.note(epoch_text(line))
        last = last_line(args, task, model, lines)  # fit has left the best epoch's weights in the model
        write(last)
    draw_and_write(args, task, model, lines)
    return 0


def parse_arguments() -> Namespace:
    parser = cli.Parser("Train an LSTM on the Tang poems; writes metrics, curves, poems and the best model to --out.")

    def add(name: str, help: str, **how: Any) -> None:
        default = DEFAULTS.get(name[2:].replace("-", "_"))
        parser.add_argument(name, help=help if default in (None, False) else f"{help} (default: {default})", **how)

    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    share = cli.real(lambda p: 0 <= p < 1, "from 0 to below 1")
    add("--backend", "numpy: the processor; cupy: an NVIDIA GPU", default="numpy", choices=["numpy", "cupy"])
    add("--corpus", "a folder with poet.tang.N.json files; without it they are fetched", type=Path, metavar="DIR")
    add("--files", "how many of the 58 Tang files, from the first", type=cli.whole(1, 58))
    add("--text", "train on this UTF-8 text instead, one poem or passage a line", type=Path, metavar="FILE")
    add("--max-length", "leave out poems of more characters", type=cli.whole(1))
    add("--max-vocabulary", "know only the N most frequent characters", type=cli.whole(1), metavar="N")
    add("--min-count", "know only characters seen so often", type=cli.whole(1))
    add("--recipe", "best replaces the defaults below by those with the lowest perplexity", choices=list(RECIPES))
    protocols = "report: its experiment, whose settings replace the defaults below; report-rows: its poems, targets "
    protocols += "and test part, without pads, for any settings"
    add("--protocol", protocols, choices=list(protocol.PROTOCOLS))
    add("--optimizer", "the update rule", default="adam", choices=list(LEARNING_RATES))
    add("--lr", f"learning rate (default: {rates})", type=cli.positive)
    add("--schedule", "one-cycle rises to --lr and falls over all epochs", choices=["constant", "one-cycle"])
    add("--epochs", "at most this many passes over the training part", type=cli.whole(1))
    add("--patience", "stop after so many epochs in a row without a better one", type=cli.whole(1))
    add("--batch-size", "poems per step", type=cli.whole(1))
    add("--hidden-size", "units of the LSTM", type=cli.whole(1, 65536))
    add("--embedding-size", "size of a character's vector", type=cli.whole(1, 65536))
    add("--tied", "the embedding is the projection's weight too", action=argparse.BooleanOptionalAction)
    add("--dropout", "share of units that a training step leaves out", type=share)
    add("--clip", "largest norm of the gradient", type=cli.positive)
    add("--out", "a new folder for the results (default: runs/1, runs/2, ...)", type=Path, metavar="DIR")
    add("--seed", "the seed of all random numbers", default=0, type=cli.whole(0))
    args = parser.parse_args()
    for name in ("corpus", "files", "max_length"):
        if args.text and getattr(args, name) is not None:
            parser.error(f"--text and --{name.replace('_', '-')} exclude each other")
    settle(parser, args)
    return args


def settle(parser: cli.Parser, args: Namespace) -> None:
    """Fill in what was not given; the report's protocol fixes most of it, and contradicting it is an error."""
    as_it_was = args.protocol == "report"
    settings: dict[str, Any] = protocol.PROTOCOLS.get(args.protocol, {})
    if args.protocol and args.text:
        parser.error(f"--text does not go with --protocol {args.protocol}")
    if as_it_was and args.recipe:
        parser.error("--recipe does not go with --protocol report")
    if as_it_was and args.optimizer not in protocol.LEARNING_RATES:
        parser.error(f"--protocol report knows the optimizers {', '.join(protocol.LEARNING_RATES)}")
    if as_it_was and args.epochs is None:
        args.epochs = protocol.EPOCHS
    recipe = RECIPES[args.recipe or "default"]
    for name, default in {**DEFAULTS, **recipe}.items():
        fixed = settings.get(name, default)
        if getattr(args, name) is None:
            setattr(args, name, fixed)
        elif name in settings:
            parser.error(f"--{name.replace('_', '-')} does not go with --protocol {args.protocol}, which fixes it")
    args.lr = args.lr or (protocol.LEARNING_RATES if as_it_was else LEARNING_RATES)[args.optimizer]
    args.out = args.out or cli.next_run()
    if args.tied and args.embedding_size != args.hidden_size:
        parser.error(
            f"--tied needs --embedding-size {args.hidden_size}, as --hidden-size is; got {args.embedding_size}"
        )


def build_schedule(args: Namespace, model: PoemModel, task: Task) -> Schedule:
    optimizer = build_optimizer(args.optimizer, model.parameters(), args.lr)
    if args.schedule == "one-cycle":
        return minidl.OneCycle(optimizer, args.lr, args.epochs * task.steps)
    return minidl.Constant(optimizer)


def as_json(args: Namespace) -> dict[str, int | float | str]:
    """The arguments for the model's file; a path may hold bytes that are not UTF-8, JSON may not."""
    return {
        name: value if isinstance(value, (int, float)) else os.fsencode(str(value)).decode("utf-8", "replace")
        for name, value in vars(args).items()
    }


def default_task(args: Namespace) -> tuple[Task, LineIndex]:
    """Poems without duplicates, split by their SHA-256; the vocabulary is the training part's. And all their lines."""
    parts = read_parts(args)
    index = LineIndex.build(poem for part in parts for poem in part)
    gc.collect()  # the memory of the strings goes back to the system, before anything that stays settles among them
    vocabulary = Vocabulary.build(parts[0], most=args.max_vocabulary, least=args.min_count)
    return packed_task(parts, vocabulary, args.batch_size), index


def read_parts(args: Namespace) -> list[Joined]:
    """The training, validation and test poems; no other string of the corpus lives on."""
    if args.text:
        found = corpus.read_text(args.text)
        pieces = (line[at : at + MAX_PIECE] for line in found.poems for at in range(0, len(line), MAX_PIECE))
        poems = list(dict.fromkeys(pieces))
    else:
        found = corpus.load(args.corpus, args.files, max_length=args.max_length)
        poems = found.poems
    parts = corpus.split(poems)
    if not all(parts):
        raise cli.UsageError(f"{len(poems)} poems are too few: a training, validation or test part is empty")
    cli.note(f"{' / '.join(f'{len(part):,}' for part in parts)} poems to train / validate / test, {counts_text(found)}")
    return [Joined(part) for part in parts]


def report_task(args: Namespace) -> tuple[Task, LineIndex]:
    found = corpus.load(args.corpus, args.files, max_length=MAX_LENGTH, unique=False)
    if args.protocol == "report":
        task = protocol.report_task(found.poems)
    else:
        task = protocol.rows_task(found.poems, args.batch_size)
    cli.note(f"{len(found.poems):,} poems in the report's order, {counts_text(found)}")
    return task, LineIndex.build(found.poems)


def counts_text(found: corpus.Corpus) -> str:
    skipped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in found.counts.items() if count]
    return f"of {', '.join(skipped)}"


def epoch_text(line: dict[str, float]) -> str:
    report = f", with pads {line['report_cross_entropy']:.3f}" if "report_cross_entropy" in line else ""
    return (
        f"epoch {line['epoch']:2}  train {line['train_loss']:.3f}  validation {line['validation_loss']:.3f} nats/char"
        f" (perplexity {short(line['validation_perplexity'])}{report})  {line['chars_per_second']:,.0f} chars/s"
    )


def figures_text(figures: dict[str, float], part: str) -> str:
    value, error = figures[f"{part}_perplexity"], figures.get(f"{part}_perplexity_error")
    spread = "" if error is None else f" ± {short(error)}"
    return (
        f"{figures[f'{part}_loss']:.3f} nats/char (perplexity {short(value)}{spread}) "
        f"over {figures[f'{part}_targets']:,} targets"
    )


def short(perplexity: float) -> str:
    return f"{perplexity:.1f}" if perplexity < 1e6 else f"{perplexity:.1e}"


def last_line(args: Namespace, task: Task, model: PoemModel, lines: list[dict[str, float]]) -> dict[str, float]:
    """The figures to quote, of the best epoch; under the report's protocol with a word on how it was chosen."""
    last = held_out_figures(model, task)
    facts = f"vocabulary {last['vocabulary_size']:,}, {last['unknown_rate']:.2%} unknown"
    cli.note(f"test {figures_text(last, 'test')}; {facts}")
    if "short_test_loss" in last:
        cli.note(f"of its poems of at most {MAX_LENGTH} characters {figures_text(last, 'short_test')}")
    if args.protocol:
        best = min(lines, key=lambda line: line.get("report_cross_entropy", line["validation_loss"]))
        return {**best, **last, "selected_on_test": True}
    return last


def draw_and_write(args: Namespace, task: Task, model: PoemModel, lines: list[dict[str, float]]) -> None:
    """The curves, and a poem for each of the report's seven first characters."""
    import figures  # matplotlib is slow to import, and wanted only here

    as_it_was = args.protocol == "report"
    figures.draw_curves(args.out / "curves.png", lines, protocol.REPORTED[args.optimizer] if as_it_was else None)
    known = [start for start in STARTS if start in task.vocabulary]
    # A text in another script begins as it likes.
    free = bool(args.text) and not known and len(task.vocabulary) > len(task.vocabulary.marks)
    starts = [""] * len(STARTS) if free else known
    # The report took the likeliest character at every place.
    written = write_poems(model, task.vocabulary, starts, task.max_length, argmax=as_it_was, rng=args.seed)
    poems = iter(written)
    lost = "({}: not in this corpus's vocabulary)"
    text = "\n".join(next(poems) if free or start in known else lost.format(start) for start in STARTS)
    write_text(args.out / "poems.txt", text + "\n")
    print(text)
    figures.draw_poems(args.out / "poems.png", written)


if __name__ == "__main__":
    cli.run(main, corpus.CorpusError, Diverged)
