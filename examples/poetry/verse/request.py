"""The options of generate.py that request a poem, in traditional or simplified characters, converted for the model."""

from __future__ import annotations

import argparse
import functools
from argparse import Namespace
from pathlib import Path
from typing import Any

from common import cli
from corpus.line_index import FILE, LineIndex
from corpus.vocabulary import Vocabulary
from verse.free_verse import split_lines
from verse.plans import find_rhyme
from verse.prosody import Form, find_form

WIDE = {",": "，", ".": "。", "?": "？", "!": "！"}  # marks as a western keyboard types them
ONLY_REGULATED = ("rhyme", "acrostic")


def form(name: str) -> Form | None:
    """An argparse type: a form of regulated verse, or None for free verse."""
    try:
        return find_form(cli.text(name))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rhyme(name: str) -> str:
    """An argparse type: a rhyme group, by its name or a character in it."""
    name = cli.text(name).strip()
    try:
        return find_rhyme(name)
    except ValueError as error:
        try:
            return find_rhyme(convert(name, "s2t"))
        except ValueError:
            raise argparse.ArgumentTypeError(str(error)) from None


def word(name: str) -> str:
    """An argparse type: exactly one word."""
    words = cli.text(name).split()
    if len(words) != 1:
        raise argparse.ArgumentTypeError(f"expected one word, got {' and '.join(words) if words else 'none'}")
    return words[0]


def characters(name: str) -> str:
    """An argparse type: characters with white space removed, at least one."""
    name = "".join(cli.text(name).split())
    if not name:
        raise argparse.ArgumentTypeError("expected characters, got none")
    return name


def check(parser: cli.Parser, args: Namespace) -> None:
    """Report options that do not go together."""
    for name in ONLY_REGULATED:
        if args.form is None and getattr(args, name):
            parser.error(f"--{name} needs a --form with rules, such as 五絕: free verse has none")
    if args.form is not None and args.max_length is not None:
        parser.error(f"--max-length has no meaning with --form {args.form.short}, which has its own length")
    if args.explain not in (None, Path()):
        if args.explain.suffix.lower() != ".png":
            parser.error(f"--explain draws a .png file, got {str(args.explain)!r}")
        if args.count > 1:
            parser.error(f"--explain {args.explain} draws one poem: it does not go with --count {args.count}")
        if not args.explain.parent.is_dir():
            parser.error(f"--explain {args.explain} cannot be written: no folder {args.explain.parent}")


def in_vocabulary(wanted: str, vocabulary: Vocabulary, option: str = "--start") -> str:
    """`wanted`, with characters that the vocabulary lacks made traditional; UsageError if one is still missing."""
    wanted = "".join(character for character in wanted if character in vocabulary or not character.isspace())
    wanted = "".join(ours if ours in vocabulary else WIDE.get(ours, ours) for ours in wanted)
    if all(character in vocabulary for character in wanted):
        return wanted
    mixed = [
        ours if ours in vocabulary else theirs for ours, theirs in zip(wanted, convert(wanted, "s2t"), strict=True)
    ]
    strangers = [character for character in mixed if character not in vocabulary]
    if strangers:
        raise cli.UsageError(f"{option} has {'、'.join(strangers)}, which the model never saw; try other characters")
    return "".join(mixed)


def convert(text: str, direction: str) -> str:
    """`text` converted by OpenCC ("s2t": to traditional, "t2s": to simplified characters), to the same length."""
    converter = _converter(direction)
    converted = converter.convert(text)
    if len(converted) != len(text):
        converted = "".join(converter.convert(character)[:1] for character in text)
    return converted


@functools.cache
def _converter(direction: str) -> Any:
    import opencc  # imported only when needed: its dictionaries take time to load

    return opencc.OpenCC(direction)


def in_script(poem: str, script: str) -> str:
    return convert(poem, "t2s") if script == "simplified" else poem


def index_at_hand(model: Path) -> LineIndex | None:
    """The lines that the model was trained on, if they are in a file beside it."""
    try:
        return LineIndex.load(model.parent / FILE)
    except (OSError, ValueError):
        return None  # here it only makes copied lines rarer; --no-copy reports the error


def line_index(model: Path, metadata: dict[str, Any]) -> LineIndex:
    """The lines that the model was trained on: from the file beside it, else from the corpus, and then saved there."""
    path = model.parent / FILE
    if path.exists():
        try:
            return LineIndex.load(path)
        except ValueError as error:
            raise cli.UsageError(f"--no-copy: {error}; delete it to have it rebuilt") from None
    from corpus import (
        tang,  # imported only when needed: they take time to load
        texts,
    )

    arguments = metadata.get("arguments") or {}
    if arguments.get("prepared") is not None:
        raise cli.UsageError("--no-copy needs the lines that the model was trained on, but prepare.py keeps none")
    longest = metadata.get("max_length")
    cli.note(f"--no-copy reads the corpus once, for {path}")
    try:
        if arguments.get("text") is not None:
            encoding = arguments.get("encoding") or texts.UTF8
            poems = list(texts.pieces(tang.read_text(Path(arguments["text"]), encoding).poems))
        else:
            folder = arguments.get("corpus")
            files = arguments.get("files", 8)
            poems = tang.load(None if folder is None else Path(folder), files, max_length=longest).poems
    except tang.CorpusError as error:
        raise cli.UsageError(f"--no-copy needs the lines that the model was trained on: {error}") from None
    index = LineIndex.build(poems)
    try:
        index.save(path)
    except OSError as error:
        cli.note(f"{path} cannot be written ({error.strerror or error}), so it will be rebuilt every time")
    return index


def check_start(start: str, index: LineIndex | None) -> None:
    """UsageError if `start` has a complete line that is in `index`."""
    for line in split_lines(start)[:-1]:
        if index is not None and line and line in index:
            raise cli.UsageError(f"--start has the line {line}, which is in the training corpus (--no-copy)")
