"""Reads the user's own text in any encoding, a few MB at a time, because it may be larger than memory."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from corpus.download import CorpusError

UTF8 = "UTF-8"
MAX_PIECE = 200  # longer lines are cut: a batch takes as many steps as its longest poem
CHUNK = 4 << 20  # bytes read at a time
LONGEST_LINE = 16 << 20  # characters
SAMPLE = 1 << 14  # bytes examined to guess what a file may be
ENOUGH = 50  # non-ASCII bytes for a confident guess
BOM = "\ufeff"
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which some encodings accept
MARKED = {  # byte order marks; UTF-32's little-endian mark begins with UTF-16's
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
    b"PK\x03\x04": "a zip archive, such as a Word file or an e-book: save it as plain text first",
    b"\xd0\xcf\x11\xe0": "an old Word file: save it as plain text first",
    b"%PDF": "a PDF: save it as plain text first",
}


def encoding(name: str) -> str:
    """An argparse type: the name of an encoding that Python knows."""
    try:
        codecs.getincrementaldecoder(name)
        with contextlib.suppress(UnicodeDecodeError):
            b"a".decode(name)  # LookupError if it does not decode bytes to text
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(
            f"expected the name of an encoding, such as gb18030, big5 or cp1252, got {name!r}"
        ) from None
    return name


def text_lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[list[str], int]]:
    """The stripped lines of a text, some thousands at a time, and how many bytes were read for them.

    CorpusError, with a guess, if the file is in another encoding, and for a line of more than LONGEST_LINE characters.
    """
    reader, rest = Reader(path, encoding), ""
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                text = rest + reader.decoded(data)
                whole, _, rest = text.rpartition("\n" if "\n" in text else "\r")  # "\r": text from an old Mac
                if len(rest) > LONGEST_LINE:
                    raise CorpusError(
                        f"{path} has more than {LONGEST_LINE:,} characters in line {reader.line}; expected a poem"
                    )
                yield _stripped(whole), len(data)
            yield _stripped(rest + reader.decoded(b"")), 0
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a text, cut into pieces of at most MAX_PIECE characters."""
    return (line[at : at + MAX_PIECE] for line in lines for at in range(0, len(line), MAX_PIECE))


def _stripped(text: str) -> list[str]:
    return list(map(str.strip, text.splitlines()))


class Reader:
    """Decodes the bytes of a file as they arrive; never reads the file itself, which may be a pipe."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.encoding = path, encoding
        try:
            self.decoder = codecs.getincrementaldecoder(encoding)()
        except LookupError:  # the resumed run was started elsewhere
            raise CorpusError(f"{path}: this Python does not know the encoding {encoding}") from None
        self.byte, self.line, self.begun = 0, 1, False  # where the next bytes start, and whether there was any text yet
        self.head = self.latest = b""

    def decoded(self, data: bytes) -> str:
        """The next bytes as text; no bytes mean the end of the file. CorpusError if the encoding is wrong."""
        self.head = self.head or data[:SAMPLE]
        before = self.decoder.getstate()
        try:
            text = self.decoder.decode(data, final=not data)
        except UnicodeError as error:
            good = 0
            if isinstance(error, UnicodeDecodeError):  # its object is the undecoded rest plus `data`
                good = len(data) - len(error.object) + error.start
            self.decoder.setstate(before)
            line = self.line
            with contextlib.suppress(UnicodeError):  # UTF-16 without a mark decodes nothing
                line += self.decoder.decode(data[: max(good, 0)]).count("\n")
            where = f"byte {self.byte + good}, in line {line}"
            raise CorpusError(f"{self.path} is not {self.encoding}: {where}; {self.advice(data, good)}") from None
        nul, half = 10 * text.count("\0") > len(text), SURROGATE.search(text)  # any text may contain a few stray NULs
        if nul or half:
            what, advice = "NULs" if nul else "unpaired surrogates", self.advice(data, 0)
            raise CorpusError(f"{self.path} is not text in {self.encoding}: it has {what}; {advice}")
        if text and not self.begun:
            text, self.begun = text.removeprefix(BOM), True
        self.latest = data[-SAMPLE:]
        self.byte += len(data)
        self.line += text.count("\n")
        return text

    def advice(self, data: bytes, at: int) -> str:
        """A guess at what the file is, from its beginning and the bytes around position `at`, and what to do."""
        for mark, what in PACKED.items():
            if self.head.startswith(mark):
                return f"it looks like {what}"
        marked = [name for mark, name in MARKED.items() if self.head.startswith(mark)][:1]
        if not data:  # the file ends in the middle of a character
            data, at = self.latest, len(self.latest)
        start = max(0, at - SAMPLE // 2) // 4 * 4  # characters of UTF-16 and UTF-32 stay whole
        sample = data[start : start + SAMPLE]
        names = _others(marked or _guesses(sample, whole=start == self.byte == 0), self.encoding)
        if not names:
            return "no other encoding fits: the file may be damaged there"
        sure = bool(marked) or _beyond_ascii(sample) >= ENOUGH
        return f"it {'looks like' if sure else 'may be'} {' or '.join(names)}: try --encoding {names[0]}"


def _guesses(sample: bytes, whole: bool) -> list[str]:
    """The most likely encodings of some bytes, which start with a complete character if `whole`.

    Windows-1252, the most common of its kind, comes first if it fits and the text is mostly ASCII.
    """
    if 0 in sample:  # UTF-16 or UTF-32, where lines cannot be split yet
        return _detected(sample)
    if sample.isascii():
        return [UTF8]
    every = sample.splitlines(keepends=True)
    # Lines that are cut would fit no encoding; pure ASCII lines say nothing, and might outnumber the others.
    lines = [line for line in every[0 if whole else 1 : -1] if not line.isascii()]
    lines = lines or [line for line in every if not line.isascii()]
    text = b"".join(lines)
    as_utf8 = [character for character in text.decode("utf-8", "replace") if character > "\x7f"]
    if 2 * as_utf8.count("\ufffd") < len(as_utf8):
        return [UTF8]
    half = len(lines) // 2
    parts = [text, b"".join(lines[:half]), b"".join(lines[half:])]  # in case a byte is damaged
    parts += [
        text[first : len(text) - last] for first in range(4) for last in range(4)
    ]  # or everything is one line, cut off
    names = next(filter(None, map(_detected, filter(None, parts))), [])
    with contextlib.suppress(UnicodeDecodeError):
        text.decode("cp1252")
        if "cp1252" in names or 5 * _beyond_ascii(text) < len(text):
            return list(dict.fromkeys(["cp1252", *names]))
    return names


def _detected(sample: bytes) -> list[str]:
    """The most likely encoding, and Windows-1252 if it is likely too."""
    from charset_normalizer import from_bytes  # imported only here: few texts need it

    matches = from_bytes(sample)
    names = [match.encoding.replace("_", "-") for match in matches if match.encoding not in ("ascii", "utf_8")][:1]
    return names + ["cp1252"] * any("cp1252" in match.could_be_from_charset for match in matches)


def _beyond_ascii(sample: bytes) -> int:
    return sum(byte > 0x7F for byte in sample)


def _others(names: list[str], encoding: str) -> list[str]:
    """The names that are not just other names for `encoding`."""
    return [name for name in names if codecs.lookup(name).name != codecs.lookup(encoding).name]
