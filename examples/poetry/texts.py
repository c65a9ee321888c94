"""A text of one's own, in any encoding, read a few MB at a time: it may be larger than memory."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from download import CorpusError

UTF8 = "utf-8"
MAX_PIECE = 200  # longer lines of a text are cut, since a batch takes as many steps as its longest
CHUNK = 4 << 20  # bytes that are read at a time
LONGEST_LINE = 16 << 20  # characters
SAMPLE = 1 << 15  # bytes that are looked at to say what a file may be
BOM = "\ufeff"
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which some encodings let through
MARKED = {  # what a text may begin with; UTF-32's little-endian mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED = {
    b"\x1f\x8b": "gzip: unpack it first",
    b"BZh": "bzip2: unpack it first",
    b"\xfd7zXZ\x00": "xz: unpack it first",
    b"(\xb5/\xfd": "zstd: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"PK\x03\x04": "a zip archive, as of Word or an e-book: save it as plain text first",
    b"\xd0\xcf\x11\xe0": "an old Word file: save it as plain text first",
    b"%PDF": "a PDF: save it as plain text first",
}


def encoding(name: str) -> str:
    """An argparse type: the name of an encoding that Python knows."""
    try:
        codecs.getincrementaldecoder(name)
        with contextlib.suppress(UnicodeDecodeError):
            b"a".decode(name)  # a LookupError if it makes no text of bytes
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(
            f"expected the name of an encoding, such as gb18030, big5 or cp1252, got {name!r}"
        ) from None
    return name


def text_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[list[str], int]]:
    """The lines of a text without white space at their ends, some thousand at a time, and the bytes that were read for
    them; in UTF-8 if no other encoding is named.

    CorpusError, with what the file looks like, if it is in another encoding, and for a line of more than LONGEST_LINE
    characters.
    """
    decoder = codecs.getincrementaldecoder(encoding or UTF8)()
    byte, line, rest, begun = 0, 1, "", False
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                text = _decoded(decoder, path, encoding, data, byte)
                whole, end, rest = (rest + (text if begun else text.removeprefix(BOM))).rpartition("\n")
                begun = begun or bool(text)
                line += whole.count("\n") + len(end)
                if len(rest) > LONGEST_LINE:
                    raise CorpusError(
                        f"{path} has more than {LONGEST_LINE:,} characters in line {line}; a poem is expected"
                    )
                yield _stripped(whole), len(data)
                byte += len(data)
            yield _stripped(rest + _decoded(decoder, path, encoding, b"", byte)), 0
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """What is learned of a text's lines: each, cut where it is longer than MAX_PIECE characters."""
    return (line[at : at + MAX_PIECE] for line in lines for at in range(0, len(line), MAX_PIECE))


def _stripped(text: str) -> list[str]:
    return list(map(str.strip, text.splitlines()))


def _decoded(decoder: codecs.IncrementalDecoder, path: Path, encoding: str | None, data: bytes, byte: int) -> str:
    """The bytes that were read of the file from `byte` on; no more to come if there are none."""
    try:
        text = decoder.decode(data, final=not data)
    except UnicodeError as error:
        at = byte
        if isinstance(error, UnicodeDecodeError):  # of what was left before, and of `data` to its end
            at += len(data) - len(error.object) + error.start
        name = "UTF-8" if encoding is None else encoding
        raise CorpusError(f"{path} is not {name}: {_place(path, encoding, at)}; {_guess(path, encoding, at)}") from None
    if "\0" in text or (encoding and SURROGATE.search(text)):
        name = "UTF-8" if encoding is None else encoding
        raise CorpusError(
            f"{path} is no text in {name}: it has NULs or halves of characters; {_guess(path, encoding, byte)}"
        )
    return text


def _place(path: Path, encoding: str | None, byte: int) -> str:
    decoder, line, left = codecs.getincrementaldecoder(encoding or UTF8)("ignore"), 1, byte
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(left, CHUNK))):
            try:
                line += decoder.decode(data).count("\n")
            except UnicodeError:  # UTF-16 without a mark
                break
            left -= len(data)
    return f"byte {byte}, in line {line}"


def _guess(path: Path, encoding: str | None, byte: int) -> str:
    """What the file looks like, by its beginning and the line of this byte, and what to do then."""
    with path.open("rb") as file:
        head = sample = file.read(SAMPLE)
        if byte >= SAMPLE:
            file.seek(byte - SAMPLE // 2)
            sample = file.read(SAMPLE)
            sample = sample.partition(b"\n")[2] or sample  # from the beginning of a character
    for mark, what in PACKED.items():
        if head.startswith(mark):
            return f"it looks like {what}"
    names = [name for mark, name in MARKED.items() if head.startswith(mark)][:1] or _encodings(sample)
    names = [name for name in names if codecs.lookup(name).name != codecs.lookup(encoding or UTF8).name]
    if not names:
        return "no other encoding fits: the file may be damaged there"
    return f"it looks like {' or '.join(names)}: try --encoding {names[0]}"


def _encodings(sample: bytes) -> list[str]:
    """The likeliest one, behind Windows-1252 where that may be too: it is much the most frequent of its kind."""
    from charset_normalizer import from_bytes  # only here: few texts need it

    as_utf8 = [character for character in sample.decode("utf-8", "replace") if character > "\x7f"]
    if 2 * as_utf8.count("\ufffd") < len(as_utf8):
        return [UTF8]
    matches = from_bytes(sample)
    names = ["cp1252"] if any("cp1252" in match.could_be_from_charset for match in matches) else []
    names += [match.encoding.replace("_", "-") for match in matches if match.encoding not in ("ascii", "utf_8")][:1]
    return list(dict.fromkeys(names))
