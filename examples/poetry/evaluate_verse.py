"""Do the poems keep their rules, and at what price? Compares them with free samples and real Tang poems.

python examples/poetry/evaluate_verse.py

Writes 1,000 poems of each form, judges them with judging.py, and saves verse.md, verse.png and the poems in --out.
Forms whose poems already exist there are not written again.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import cli
from common.atomic_files import write_text
from corpus import tang
from corpus.line_index import LINE, LineIndex
from corpus.tasks import MAX_LENGTH
from model import load_model
from verse import request
from verse.free_verse import MARKS
from verse.judging import Verdict, judge
from verse.plans import Impossible
from verse.poets import Free, Poet, Regulated
from verse.prosody import FORMS, Form
from verse.scoring import log_probabilities
from verse.writing import TEMPERATURE, write_poems

import numpy as np

import minidl

LONGEST = 64  # characters of a 七律, marks included
FREE_SAMPLES = 6  # times --count: only few of them happen to have a form
GROUP = 256  # free samples written side by side
TIMED = 20  # poems, one at a time


@dataclass
class Row:
    """The shares of one set of poems that keep each rule; None if not applicable."""

    form: str
    what: str
    poems: int
    marks: float | None = None  # share of poems whose lines end in alternating ， and 。
    rhyme: float | None = None
    tones: float | None = None
    kept: float | None = None  # all rules
    repeats: float | None = None  # share of poems that repeat a line
    copied: float | None = None  # share of lines in the training corpus; for Tang poems, in another poem
    log_probability: float | None = None  # nats per character, marks and the end left out
    characters: float | None = None  # distinct characters / all characters
    bigrams: float | None = None
    seconds: float | None = None  # per poem, on one core


class Writer:
    """The model, and how generate.py writes with it."""

    def __init__(self, args: Namespace, path: Path) -> None:
        self.args = args
        self.model, self.vocabulary, self.metadata = load_model(path)
        self.index = request.line_index(path, self.metadata)

    def written(self, form: Form | None, count: int, *, no_copy: bool = False) -> list[str]:
        """Poems as generate.py writes them."""
        return [poem.text for poems in self._poet(form, count, self.args.seed, no_copy).poems() for poem in poems]

    def seconds(self, form: Form | None) -> float:
        """Per poem: the median of several written one at a time on one core."""
        times, threads = [], minidl.get_num_threads()
        minidl.set_num_threads(1)
        for seed in range(TIMED):
            poet = self._poet(form, 1, seed)
            start = time.perf_counter()
            list(poet.poems())
            times.append(time.perf_counter() - start)
        minidl.set_num_threads(threads)
        return float(np.median(times))

    def samples(self, count: int) -> list[str]:
        """Poems without any rules."""
        rng = np.random.default_rng(self.args.seed)
        poems: list[str] = []
        while len(poems) < count:
            starts = [""] * min(GROUP, count - len(poems))
            temperature = self.args.temperature
            poems += write_poems(self.model, self.vocabulary, starts, LONGEST, temperature=temperature, rng=rng)
        return poems

    def _poet(self, form: Form | None, count: int, seed: int, no_copy: bool = False) -> Poet:
        wanted = Namespace(form=form, count=count, seed=seed, no_copy=no_copy, temperature=self.args.temperature)
        wanted.start = wanted.acrostic = wanted.keyword = ""
        wanted.rhyme = wanted.top_k = wanted.top_p = None
        wanted.argmax, wanted.max_length = False, self.metadata.get("max_length", MAX_LENGTH)
        return (Free if form is None else Regulated)(wanted, self.model, self.vocabulary, self.index)


def main() -> int:
    args = parse_arguments()
    path = args.model or cli.newest_model()
    with cli.output_folder(args.out):
        evaluate(args, Writer(args, path))
    return 0


def evaluate(args: Namespace, writer: Writer) -> None:
    """Write, judge and compare; finished parts are kept in --out."""
    found = tang.load(args.corpus, args.files, max_length=None)
    of_tang: dict[str, list[str]] = {shape: [] for shape in ("", *(form.short for form in FORMS))}
    for poem in found.poems:
        of_tang[judge(poem).shape].append(poem)
    lines = Counter(line for poem in found.poems for line in set(LINE.findall(poem)))
    free = kept_in(args.out / "free-samples.txt", FREE_SAMPLES * args.count, writer.samples)
    rows = [row for form in FORMS for row in rows_of(writer, form, free, of_tang[form.short], lines)]
    verse = kept_in(args.out / "free.txt", args.count, lambda n: writer.written(None, n))
    rows.append(row_of("free", "written", verse, writer, copied=copied(verse, writer.index)))
    rows[-1].seconds = writer.seconds(None)
    rows.append(row_of("free", "free samples", free[: args.count], writer, copied=copied(free, writer.index)))
    others = spread(found.poems, args.count)
    rows.append(row_of("free", "Tang", others, writer, copied=shared(others, lines)))
    write_text(args.out / "verse.json", json.dumps([asdict(row) for row in rows], ensure_ascii=False))
    write_text(args.out / "verse.md", table(rows))
    from verse.verse_figure import draw_verse  # matplotlib is slow to import, and only needed here

    draw_verse(args.out / "verse.png", [asdict(row) for row in rows if row.form != "free"])
    print(table(rows), end="")


def parse_arguments() -> Namespace:
    parser = cli.Parser("Write poems of each form, and judge them beside free samples and Tang poems.")
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="a model.safetensors (default: the newest under runs/, or the pretrained one)",
    )
    add("--corpus", type=Path, metavar="DIR", help="a folder with poet.tang.N.json files; without it they are fetched")
    add("--files", type=cli.whole(1, 58), default=58, help="number of files of Tang poems to compare with")
    add("--count", type=cli.whole(1, 100_000), default=1000, help="poems of each form")
    add("--temperature", type=cli.positive, default=TEMPERATURE, help="below 1 plainer, above 1 wilder")
    add("--out", type=Path, default=Path("runs/verse"), metavar="DIR", help="the folder for poems, table and figure")
    add("--seed", type=cli.whole(0), default=0, help="seed of all random numbers")
    return parser.parse_args()


def rows_of(writer: Writer, form: Form, free: Sequence[str], of_tang: Sequence[str], lines: Counter[str]) -> list[Row]:
    """The rows for one form."""
    out, count, short = writer.args.out, writer.args.count, form.short
    plain = kept_in(out / f"{form.short}.txt", count, lambda n: writer.written(form, n))
    fresh = kept_in(out / f"{form.short}-no-copy.txt", count, lambda n: writer.written(form, n, no_copy=True))
    same = [poem for poem in free if judge(poem).shape == short]
    strict = [poem for poem in same if judge(poem).kept]
    real = spread(of_tang, count)
    rows = [
        row_of(short, "written", plain, writer, copied=copied(plain, writer.index)),
        row_of(short, "written, --no-copy", fresh, writer, copied=copied(fresh, writer.index)),
        row_of(short, f"free samples of its shape, of {len(free):,}", same, writer, copied=copied(same, writer.index)),
        row_of(short, "those of them that keep all", strict, writer, copied=copied(strict, writer.index)),
        row_of(short, "Tang", real, writer, copied=shared(real, lines)),
    ]
    rows[0].seconds = writer.seconds(form)
    return rows


def row_of(form: str, what: str, poems: Sequence[str], writer: Writer, copied: float | None) -> Row:
    row = Row(form, what, len(poems), copied=copied)
    if not poems:
        return row
    verdicts: list[Verdict] = [judge(poem) for poem in poems]
    row.repeats = share(verdict.repeats for verdict in verdicts)
    if form != "free":
        row.marks, row.rhyme = share(v.marks for v in verdicts), share(v.rhyme for v in verdicts)
        row.tones, row.kept = share(v.tones for v in verdicts), share(v.kept for v in verdicts)
    row.log_probability = mean_log_probability(poems, writer)
    if len(poems) >= writer.args.count:  # more poems repeat more: only equal numbers can be compared
        row.characters, row.bigrams = distinct(poems[: writer.args.count])
    return row


def mean_log_probability(poems: Sequence[str], writer: Writer) -> float | None:
    """Nats per character over all poems, or None without characters; at temperature 1 with nothing forbidden."""
    total = []
    poems = [poem for poem in poems if poem.strip(MARKS)]
    for start in range(0, len(poems), 64):
        part = poems[start : start + 64]
        found = log_probabilities(writer.model, writer.vocabulary, part)
        for poem, values in zip(part, found, strict=True):
            kept = [place for place, character in enumerate(poem) if character not in MARKS]
            total.append(values[kept])
    return float(np.nanmean(np.concatenate(total))) if total else None


def distinct(poems: Sequence[str]) -> tuple[float, float]:
    """The shares of distinct characters, and of distinct pairs of neighbours within a line."""
    lines = [line for poem in poems for line in LINE.findall(poem)]
    characters = Counter(character for line in lines for character in line)
    pairs = Counter(line[at : at + 2] for line in lines for at in range(len(line) - 1))
    return len(characters) / max(1, characters.total()), len(pairs) / max(1, pairs.total())


def copied(poems: Sequence[str], index: LineIndex) -> float | None:
    """The share of lines that occur in the training corpus."""
    return share(line in index for poem in poems for line in LINE.findall(poem))


def shared(poems: Sequence[str], lines: Counter[str]) -> float | None:
    """The share of lines that also occur in another poem of the corpus."""
    return share(lines[line] > 1 for poem in poems for line in LINE.findall(poem))


def share(found: Iterable[bool]) -> float | None:
    """The share of True values; None without values."""
    all_of_them = list(found)
    return float(np.mean(all_of_them)) if all_of_them else None


def spread(poems: Sequence[str], count: int) -> list[str]:
    """`count` poems spread over the corpus, or all if there are fewer."""
    return list(poems[:: max(1, len(poems) // count)][:count])


def kept_in(path: Path, count: int, write: Callable[[int], list[str]]) -> list[str]:
    """The poems in `path`, one per line, if there are `count`; otherwise they are written there."""
    if path.exists():
        poems = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
        if len(poems) == count and not any("\ufffd" in poem for poem in poems):
            return poems
    cli.note(f"writing {count:,} poems into {path}")
    poems = write(count)
    write_text(path, "".join(f"{poem}\n" for poem in poems))
    return poems


COLUMNS = {
    "marks": "marks",
    "rhyme": "rhyme",
    "tones": "tones",
    "kept": "all kept",
    "repeats": "a line twice",
    "copied": "lines copied",
}


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    names = [*COLUMNS.values(), "nats a character", "distinct characters", "distinct pairs", "seconds a poem"]
    lines = [f"| form | poems | of them | {' | '.join(names)} |", "| --- | --- |" + " ---: |" * (len(names) + 1)]
    for row in rows:
        shares = [percent(getattr(row, name)) for name in COLUMNS]
        nats = "" if row.log_probability is None else f"{row.log_probability:.2f}"
        seconds = "" if row.seconds is None else f"{row.seconds:.3f}"
        cells = [row.form, row.what, f"{row.poems:,}", *shares, nats, percent(row.characters), percent(row.bigrams)]
        lines.append(f"| {' | '.join([*cells, seconds])} |")
    return "\n".join(lines) + "\n"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if value not in (0, 1) else f"{value:.0%}"


if __name__ == "__main__":
    cli.run(main, tang.CorpusError, Impossible)
