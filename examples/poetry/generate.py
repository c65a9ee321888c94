"""Write poems with a trained model.

python examples/poetry/generate.py --start 月 --count 4
python examples/poetry/generate.py --form 七絕 --rhyme 東 --keyword 秋
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from common import cli
from corpus.tasks import MAX_LENGTH
from corpus.vocabulary import BEGIN
from model import load_model
from verse import request
from verse.composing import Poem
from verse.plans import Impossible
from verse.poets import Free, Poet, Regulated
from verse.writing import TEMPERATURE

FORMS = "五絕|七絕|五律|七律|free"
EXPLAIN = (
    "print under each poem what the model considered at each place, and what the rules forbade; with a .png file name, "
    "which requires --count 1, draw it there instead"
)


def main() -> int:
    args = parse_arguments()
    path = args.model or cli.newest_model()
    model, vocabulary, metadata = load_model(path)
    for name in ("start", "acrostic", "keyword"):
        setattr(args, name, request.in_vocabulary(getattr(args, name) or "", vocabulary, f"--{name}"))
    if not args.start + args.acrostic and BEGIN not in vocabulary:
        raise cli.UsageError(f"the model {path} needs a first character: give one with --start")
    args.max_length = args.max_length or metadata.get("max_length", MAX_LENGTH)
    index = request.line_index(path, metadata) if args.no_copy else request.index_at_hand(path)
    try:
        poet: Poet = (Free if args.form is None else Regulated)(args, model, vocabulary, index)
        for poems in poet.poems():
            print("\n".join(request.in_script(poem.text, args.script) for poem in poems), flush=True)
            if args.explain is not None:
                for poem in poems:
                    explain(poet, poem, args)
    except Impossible as error:
        raise cli.UsageError(str(error)) from None
    return 0


def parse_arguments() -> Namespace:
    parser = cli.Parser("Write poems with a model trained by train.py.")
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="a model.safetensors (default: the newest under runs/, or the pretrained one)",
    )
    add(
        "--start",
        type=cli.text,
        default="",
        metavar="TEXT",
        help="the beginning of the poem; simplified characters work too",
    )
    add("--form", type=request.form, metavar=FORMS, help="the form to write in (default: free verse)")
    add(
        "--rhyme",
        type=request.rhyme,
        metavar="GROUP",
        help="the rhyme: the name of a group of the 平水韻, such as 東",
    )
    add("--acrostic", type=request.characters, metavar="TEXT", help="the first characters of the lines")
    add("--keyword", type=request.word, metavar="TEXT", help="a character or word that the poem must contain")
    add("--no-copy", action="store_true", help="never write a line of the training corpus")
    add("--script", choices=["traditional", "simplified"], default="traditional", help="the script of the output")
    add("--count", type=cli.whole(1, 1_000_000), default=1, help="number of poems, one per line")
    add("--temperature", type=cli.positive, default=TEMPERATURE, help="below 1 plainer, above 1 wilder")
    add("--top-k", type=cli.whole(1), metavar="K", help="sample only from the K most probable characters")
    share = cli.real(lambda p: 0 < p <= 1, "above 0 and at most 1")
    add("--top-p", type=share, metavar="P", help="sample from the fewest characters with a total probability of P")
    add("--argmax", action="store_true", help="always take the most probable character")
    add("--max-length", type=cli.whole(1), help="most characters in free verse (default: the longest in training)")
    add("--seed", type=cli.whole(0), help="makes the output reproducible; without it poems differ every time")
    add("--explain", nargs="?", type=Path, const=Path(), metavar="PICTURE", help=EXPLAIN)
    args = parser.parse_args()
    for name in ("temperature", "top_k", "top_p"):
        if args.argmax and getattr(args, name) != parser.get_default(name):
            parser.error(f"--argmax does not sample, so --{name.replace('_', '-')} has no meaning with it")
    request.check(parser, args)
    return args


def explain(poet: Poet, poem: Poem, args: Namespace) -> None:
    """Show what the model considered: as a table, or as a picture in the given file."""
    from verse import explaining  # imported only here: rarely needed

    thoughts = explaining.thoughts(poet.model, poet.vocabulary, poem.text, poet.referee(poem))
    poem_in_script = request.in_script(poem.text, args.script)
    thoughts = explaining.converted(thoughts, poem_in_script, lambda text: request.in_script(text, args.script))
    if args.explain == Path():
        print(explaining.table(thoughts), flush=True)
    else:
        from verse.explaining_picture import draw_thoughts  # matplotlib is slow to import

        draw_thoughts(args.explain, thoughts)


if __name__ == "__main__":
    cli.run(main)
