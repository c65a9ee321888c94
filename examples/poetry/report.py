"""Repeat the report's results in one command, and write them up as report.md with figures.

python examples/poetry/report.py

Trains the report's model with Adam, AdaGrad and Adadelta as `train.py --protocol report` does, then from two
bad starts: all weights zero, and all weights the same number.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from common import cli, figures
from common.atomic_files import write_text
from corpus import tang
from corpus.tasks import Batch, Task
from learning import protocol
from learning.training import Diverged, Trainer, TrainingState, build_optimizer
from model import PoemModel, load_model, save_model
from verse.composing import Choice, compose
from verse.plans import plan
from verse.prosody import FORMS, Form
from verse.readings import readings_of
from verse.writing import STARTS, TEMPERATURE, write_poems

import numpy as np

import minidl

Line = dict[str, float]
Write = Callable[[Mapping[str, object]], None]
START_EPOCHS = 5  # enough to see the bad starts stall
RULED = FORMS[:2]  # 五絕 and 七絕: the forms shown beside the report's poems
NAMES = {"adam": "Adam", "adagrad": "AdaGrad", "adadelta": "Adadelta"}


class Start(NamedTuple):
    """The outcome of one initialization."""

    title: str
    losses: list[float]  # on the test part, nats per real target, after each epoch
    distinct_units: int  # hidden units with distinct outputs


def main() -> int:
    args = parse_arguments()
    minidl.backend.get(args.backend)
    remedy = "stop other programs that use it"  # the sizes are the report's
    with cli.results_folder(args.out) as out, cli.memory_advice(remedy, lambda: kept(out)):
        return report(args, out)


def kept(out: Path) -> str:
    """What is left of a run that ends early."""
    return f"what was finished is in {out}" if any(out.iterdir()) else "nothing was finished"


def report(args: Namespace, out: Path) -> int:
    found = tang.load(args.corpus, protocol.FILES, max_length=protocol.WIDTH - 1, unique=False)
    task = protocol.report_task(found.poems)

    curves, poems, starts = {}, {}, []
    with cli.metrics_file(out) as write:
        for name, title in NAMES.items():
            model = new_model(args, task)
            curves[name] = train(title, task, model, name, args.epochs, write)
            save_model(out / f"{name}.safetensors", model, task.vocabulary, max_length=task.max_length)
            poems[name] = seven_poems(model, task)
            if name == "adam":
                starts.append(start_of("as the report starts", task, model, curves[name][:START_EPOCHS]))
        for value in (0.0, 0.05):
            title = f"all weights {value:g}"
            model = new_model(args, task)
            for parameter in model.parameters():
                parameter.data[...] = value
            lines = train(title, task, model, "adam", min(START_EPOCHS, args.epochs), write)
            starts.append(start_of(title, task, model, lines))

    ruled = ruled_poems(args.seed)
    pairs = {NAMES[name]: (curves[name], protocol.REPORTED[name]) for name in NAMES}
    figures.draw_optimizers(out / "optimizers.png", pairs)
    figures.draw_starts(out / "starts.png", starts, unigram_entropy(task))
    figures.draw_poems(out / "poems.png", [poem for poem in poems["adam"] if poem])
    write_text(out / "report.md", report_text(args, task, curves, starts, poems, ruled))
    cli.note(f"the report is {out / 'report.md'}")
    return 0


def parse_arguments() -> Namespace:
    parser = cli.Parser("Repeat the report: three optimizers, bad starts and seven poems, as report.md with figures.")
    add = parser.add_argument
    add("--backend", default="numpy", choices=["numpy", "cupy"], help="numpy: the CPU; cupy: an NVIDIA GPU")
    add("--corpus", type=Path, metavar="DIR", help="a folder with poet.tang.N.json files; without it they are fetched")
    add("--epochs", type=cli.whole(1), default=protocol.EPOCHS, help="at most this many epochs for each optimizer")
    add("--out", type=Path, metavar="DIR", help="a new folder for the results; without it runs/report-1, ...")
    add("--seed", type=cli.whole(0), default=0, help="seed of all random numbers")
    args = parser.parse_args()
    args.out = args.out or cli.next_run("report-")
    return args


def new_model(args: Namespace, task: Task) -> PoemModel:
    sizes = protocol.EMBEDDING_SIZE, protocol.HIDDEN_SIZE
    return PoemModel(len(task.vocabulary), *sizes, backend=args.backend, rng=args.seed)


def train(title: str, task: Task, model: PoemModel, optimizer: str, epochs: int, write: Write) -> list[Line]:
    """The report's run with one optimizer, logged epoch by epoch; `model` ends with its best epoch's weights."""
    lines = []
    schedule = minidl.Constant(build_optimizer(optimizer, model.parameters(), protocol.LEARNING_RATES[optimizer]))
    state = TrainingState(np.random.default_rng(), model.state_dict())
    for line, _ in Trainer(model, schedule, task, state, pads_count=True).fit(epochs, patience=1):
        lines.append(line)
        write({"run": title, **line})
        cli.note(f"{title}, epoch {line['epoch']}: {line['report_cross_entropy']:.3f} nats with pads")
    return lines


def start_of(title: str, task: Task, model: PoemModel, lines: list[Line]) -> Start:
    losses = [line["validation_loss"] for line in lines]
    return Start(title, losses, distinct_units(model, task.validation[0]))


def seven_poems(model: PoemModel, task: Task) -> list[str | None]:
    """Two sentences by argmax for each of the report's first characters; None if the corpus lacks it."""
    known = [start for start in STARTS if start in task.vocabulary]
    written = write_poems(model, task.vocabulary, known, task.max_length, argmax=True)
    poems = {start: "".join(re.findall("[^。]*。?", poem)[:2]) for start, poem in zip(known, written, strict=True)}
    return [poems.get(start) for start in STARTS]


def ruled_poems(seed: int) -> dict[str, list[str]]:
    """A poem of each form for each of the report's first characters, by the pretrained model."""
    model, vocabulary, _ = load_model(cli.PRETRAINED)
    heard, choice, rng = readings_of(vocabulary.tokens), Choice(temperature=TEMPERATURE), np.random.default_rng(seed)

    def poem(form: Form, start: str) -> str:
        wanted = plan(form, vocabulary.tokens, heard, start=start)
        return compose(model, vocabulary, heard, wanted, 1, choice=choice, rng=rng)[0].text

    return {form.short: [poem(form, start) for start in STARTS] for form in RULED}


def distinct_units(model: PoemModel, batch: Batch) -> int:
    """The number of hidden units with distinct outputs on `batch`, to within 1e-4."""
    h = model.body(batch.inputs, batch.packing)
    return len(np.unique(np.round(minidl.to_host(h).T, 4), axis=0))


def unigram_entropy(task: Task) -> float:
    """The test part's cross-entropy (nats per real target) under the training part's plain frequencies."""
    counts = np.ones(len(task.vocabulary))  # start at one, so that no test character is impossible
    for batch in task.train(np.random.default_rng(0)):
        np.add.at(counts, batch.targets[batch.real], 1)
    targets = np.concatenate([batch.targets[batch.real] for batch in task.validation])
    return float(-np.log(counts / counts.sum())[targets].mean())


def report_text(
    args: Namespace,
    task: Task,
    curves: dict[str, list[Line]],
    starts: list[Start],
    poems: dict[str, list[str | None]],
    ruled: dict[str, list[str]],
) -> str:
    """report.md: our measurements beside the report's."""
    rates = ", ".join(f"{title} {protocol.LEARNING_RATES[name]:g}" for name, title in NAMES.items())
    return f"""# The report, repeated

minidl {minidl.__version__} on {args.backend}, seed {args.seed}: an LSTM of {protocol.HIDDEN_SIZE} units on the first
{protocol.FILES} Tang files, as in the report: rows of {protocol.WIDTH} filled up with pads, batches of
{protocol.BATCH_SIZE} in the corpus's order, the last tenth as the test part, which also decides when to stop.
Vocabulary {len(task.vocabulary):,}; learning rates: {rates}.

## Three optimizers

![Test cross-entropy by epoch: ours as lines, the report's as crosses](optimizers.png)

The report's figure is the cross-entropy on its test part in nats, averaged over all {protocol.WIDTH} places of a row,
pads included; its values here were read off its figures, to about 0.02.

{optimizers_table(curves)}

Pads are easy to predict, so these figures look better than they are. Over real targets (characters and end marks):

{honest_table(curves)}

The report computes perplexity as 2 to the power of its cross-entropy. That is right for bits; for nats it is e to that
power, and only over real targets. Even so, these figures are not a fair test, because the test part selects the epoch.

## Where training starts

![Cross-entropy by epoch from three starts](starts.png)

{starts_table(starts)}

Plain character frequencies reach {unigram_entropy(task):.3f} nats on the same targets.

With all weights zero, every hidden unit outputs zero at every step, and every gradient is exactly zero except that of
the output bias: the bias learns the character frequencies, and nothing else can ever change. With all weights equal but
not zero there is a gradient, but it is the same for every unit: they remain copies of each other. A random start
(Xavier's, which preserves the size of signals and gradients) makes the units different, so that they can learn
different things.

## Seven poems

Written by argmax with the best epoch of each optimizer, beside the report's own poems. Ours are cut after two
sentences, because such a model cannot end a poem: in the report's rows a poem's last character is never an input, so
the end mark only ever follows itself. A model that always takes the most probable character ends up in a loop.

{poems_table(poems)}

## Poems that keep a form

The report's poems lose their form along the way: seven characters in one line, six in the next. The following poems
have the same beginnings. They are by the pretrained model (all Tang files, `train.py --recipe best`), and
`generate.py --form` makes them keep the form's length, rhyme and tones.

{ruled_table(ruled)}
"""


def optimizers_table(curves: dict[str, list[Line]]) -> str:
    epochs = sorted({epoch for reported in protocol.REPORTED.values() for epoch in reported})
    rows = []
    for name, lines in curves.items():
        ours = {line["epoch"]: line["report_cross_entropy"] for line in lines}
        rows.append([NAMES[name], *(f"{ours[epoch]:.3f}" if epoch in ours else "" for epoch in epochs)])
        reported = protocol.REPORTED[name]
        rows.append(["the report", *(f"{reported[epoch]:.2f}" if epoch in reported else "" for epoch in epochs)])
    return table(["epoch", *map(str, epochs)], rows)


def honest_table(curves: dict[str, list[Line]]) -> str:
    rows = []
    for name, lines in curves.items():
        best = min(lines, key=lambda line: line["report_cross_entropy"])
        loss, perplexity = f"{best['validation_loss']:.3f}", f"{best['validation_perplexity']:.1f}"
        seconds = f"{sum(line['seconds'] for line in lines):.0f}"
        rows.append([NAMES[name], f"{best['epoch']:.0f} of {len(lines)}", loss, perplexity, seconds])
    return table(["", "best epoch", "nats per real target", "perplexity", "seconds of training"], rows)


def starts_table(starts: list[Start]) -> str:
    rows = [
        [start.title, f"{len(start.losses)}", f"{start.losses[-1]:.3f}", f"{start.distinct_units}"] for start in starts
    ]
    return table(["start", "epochs", "nats per real target after them", "different hidden units"], rows)


def poems_table(poems: dict[str, list[str | None]]) -> str:
    missing = "(not in this corpus)"
    rows = [
        [start, reported, *(poems[name][place] or missing for name in poems)]
        for place, (start, reported) in enumerate(zip(STARTS, protocol.POEMS, strict=True))
    ]
    return table(["", "the report", *(NAMES[name] for name in poems)], rows)


def ruled_table(ruled: dict[str, list[str]]) -> str:
    rows = [[reported, *written] for reported, *written in zip(protocol.POEMS, *ruled.values(), strict=True)]
    return table(["the report", *ruled], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    cli.run(main, tang.CorpusError, Diverged)
