"""The corpus loader under attack: hostile archives, servers, cache folders and files.

Each ends in a CorpusError of one line, in bounded memory, with nothing outside the cache folder and nothing in it
but files whose checksum is right. What is bounded in time ends by a count of bytes, not by a clock: a test that
hangs has failed. MINIDL_THOROUGH=1 fuzzes longer.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import socketserver
import sys
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

from corpus import download, tang, unpacking
from corpus.unpacking import ArchiveError

import pytest
import test_corpus
from helpers import thorough
from test_corpus import FILES, NAMES, _contents, _one_line

cache = test_corpus.cache
FOLDER = "package/dist/quantangshi"
MEBIBYTE = 2**20
PEAK = 2 * download.MAX_BYTES + 2 * MEBIBYTE  # one file, in pieces and as a whole, and small things
Send = Callable[[bytes], None]


def ends_well(call: Callable[[], object], cache: Path, most: int = PEAK) -> str:
    """The one line in which the call ends, with little memory taken and nothing stored that is not right."""
    around = cache.parent.parent
    before = {path: path.lstat() for path in around.rglob("*") if cache not in path.parents}
    tracemalloc.start()
    try:
        message = _one_line(call)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MEBIBYTE:.1f} MiB"
    assert len(message) < 1200 and message.isprintable()
    for name, data in _contents(cache).items() if cache.exists() else ():
        assert data == FILES[name]
    after = {path for path in around.rglob("*") if cache not in path.parents}
    assert after - before.keys() <= {cache.parent, cache}
    for path, status in before.items():
        if path.is_file():
            assert path.stat().st_mtime_ns == status.st_mtime_ns, path
    return message


def find() -> list[Path]:
    return tang.find(None, 3, progress=False)


# --- archives


@pytest.fixture
def brings(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Makes npm bring these bytes as its package."""

    def install(package: bytes) -> None:
        def pack(work: Path, progress: bool) -> Path:
            (work / "x.tgz").write_bytes(package)
            return work / "x.tgz"

        monkeypatch.setattr(download, "_npm_pack", pack)

    return install


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    """One member of an archive; `size` may contradict the data."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def raw(name: bytes, kind: bytes, size: bytes, data: bytes = b"", tail: bytes = b"") -> bytes:
    """A member whose header's fields are these bytes; `tail` is what follows the owner, at 345."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108], header[124 : 124 + len(size)], header[136:148] = b"0000644\0", size, b"00000000000\0"
    header[156:157], header[257:265] = kind, b"ustar  \0"
    header[345 : 345 + len(tail)] = tail
    return signed(header) + data + bytes(-len(data) % 512)


def signed(header: bytes | bytearray) -> bytes:
    total = sum(header[:148]) + 8 * 32 + sum(header[156:512])
    return bytes(header[:148]) + b"%06o\0 " % total + bytes(header[156:])


def pax(text: bytes) -> bytes:
    return raw(b"pax", b"x", b"%011o\0" % len(text), text)


RIGHT = [member(f"{FOLDER}/{name}", data) for name, data in FILES.items()]
FIRST = f"{FOLDER}/{NAMES[0]}"
HUGE = b"77777777777\0"  # 8 GiB
NEGATIVE = b"\xff" * 10 + b"\xf0\x00"  # -4096 in base 256
ESCAPES = [
    *(f"../../{NAMES[0]}", "../../../evil", f"/{NAMES[0]}", f"{FOLDER}/../../../evil", f"{FOLDER}/../{NAMES[0]}"),
    *(f"..\\..\\{NAMES[0]}", f"C:\\{NAMES[0]}", f"C:{NAMES[0]}", f"{FOLDER}\\{NAMES[0]}", f"{FOLDER}//{NAMES[0]}"),
    *(f"{FOLDER}/{NAMES[0]}/", f"./{FIRST}", f"{FIRST}\udcff", f"{FOLDER}/{NAMES[0].upper()}", "", ".", "..", "\u202e"),
]


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_a_member_of_another_name_is_not_the_file(name: str, cache: Path, brings: Callable[[bytes], None]) -> None:
    """It holds the right bytes, so that whoever takes it stores it; beside the right one it does no harm."""
    evil = member(name, FILES[NAMES[0]])
    brings(gzip.compress(b"".join([evil, *RIGHT[1:]])))
    assert f"lacks {NAMES[0]}" in ends_well(find, cache)
    brings(gzip.compress(b"".join([evil, *RIGHT])))
    find()
    assert _contents(cache) == FILES


def test_a_name_ends_at_its_nul(cache: Path, brings: Callable[[bytes], None]) -> None:
    """As in C, so `../evil` behind it is nothing."""
    name = FIRST.encode() + b"\0/../../../evil"
    brings(gzip.compress(b"".join([raw(name, b"0", b"%011o\0" % 4, b"evil"), *RIGHT[1:]])))
    assert f"wrong checksum of {NAMES[0]}" in ends_well(find, cache)
    assert not list(cache.parent.parent.rglob("evil*"))


LINKS = {
    "symlink": (tarfile.SYMTYPE, {"linkname": "/etc/hosts"}),
    "symlink upwards": (tarfile.SYMTYPE, {"linkname": "../../../secret"}),
    "hard link": (tarfile.LNKTYPE, {"linkname": "/etc/hosts"}),
    "hard link to a member": (tarfile.LNKTYPE, {"linkname": f"{FOLDER}/{NAMES[1]}"}),
    "character device": (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}),
    "block device": (tarfile.BLKTYPE, {"devmajor": 8}),
    "pipe": (tarfile.FIFOTYPE, {}),
    "folder": (tarfile.DIRTYPE, {}),
}


@pytest.mark.parametrize("kind", LINKS)
def test_what_is_no_file_is_not_taken_for_one(kind: str, cache: Path, brings: Callable[[bytes], None]) -> None:
    (cache.parent.parent / "secret").write_bytes(FILES[NAMES[0]])
    link = member(FIRST, kind=LINKS[kind][0], **LINKS[kind][1])
    brings(gzip.compress(b"".join([link, *RIGHT[1:]])))
    assert f"lacks {NAMES[0]}" in ends_well(find, cache)
    brings(gzip.compress(b"".join([link, *RIGHT])))
    find()
    assert _contents(cache) == FILES and not any(path.is_symlink() for path in cache.iterdir())


def test_of_members_of_one_name_the_first_counts(cache: Path, brings: Callable[[bytes], None]) -> None:
    evil = member(FIRST, b"[]")
    brings(gzip.compress(b"".join([evil, *RIGHT])))
    assert f"wrong checksum of {NAMES[0]}" in ends_well(find, cache)
    brings(gzip.compress(b"".join([RIGHT[0], evil, *RIGHT[1:]])))
    find()
    assert _contents(cache) == FILES


ENDLESS = {
    "a member of zeros": lambda: [member("zeros", size=8 << 30)],
    "the file itself": lambda: [member(FIRST, size=8 << 30)],
    "a negative size": lambda: [raw(b"back", b"0", NEGATIVE)],
    "a pax header of 8 GiB": lambda: [raw(b"pax", b"x", HUGE)],
    "a global pax header of 8 GiB": lambda: [raw(b"pax", b"g", HUGE)],
    "a long name of 8 GiB": lambda: [raw(b"name", b"L", HUGE)],
    "a long link of 8 GiB": lambda: [raw(b"name", b"K", HUGE)],
    "a negative pax header": lambda: [raw(b"pax", b"x", NEGATIVE)],
    "pax headers without a member": lambda: [pax(b"9 a=bcde\n")] * 3000,
    "a pax header of digits": lambda: [pax(b"1" * 7_500)],
    "a pax header that never advances": lambda: [pax(b"0 a=b\n")],
    "a pax size": lambda: [pax(b"28 size=9999999999999999999\n"), member(FIRST)],
    "a negative pax size": lambda: [pax(b"15 size=-99999\n"), member(FIRST)],
    "a pax size of no number": lambda: [pax(b"14 size=abcde\n"), member(FIRST)],
    "a sparse member": lambda: [raw(FIRST.encode(), b"S", b"%011o\0" % 512, bytes(512), b"".rjust(138, b"\0") + HUGE)],
    "a sparse map without end": lambda: [
        raw(FIRST.encode(), b"S", HUGE, b"", bytes(137) + b"\1" + HUGE),
        b"\1" * 10**6,
    ],
    "a sparse map that is cut": lambda: [raw(FIRST.encode(), b"S", HUGE, b"", bytes(137) + b"\1" + HUGE)],
    "a pax sparse map": lambda: [
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
        member(FIRST, b"999999999999\n" + b"1\n" * 10**5),
    ],
    "a pax sparse map of no numbers": lambda: [
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
        member(FIRST, b"abc" * 200),
    ],
    "a size in base 256": lambda: [raw(b"big", b"0", b"\x80" + b"\x7f" * 11)],
    "noise for a header": lambda: [signed(random.Random(0).randbytes(512))],
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_header_that_promises_or_wants_too_much(kind: str, cache: Path, brings: Callable[[bytes], None]) -> None:
    zeros = gzip.compress(bytes(16 * MEBIBYTE), 1) * 4  # behind each, so that there is something to read
    brings(gzip.compress(b"".join(ENDLESS[kind]()), 1) + zeros)
    assert "npm: " in ends_well(find, cache)
    assert _contents(cache) == {}


def test_very_many_empty_members_take_no_memory(cache: Path, brings: Callable[[bytes], None]) -> None:
    brings(gzip.compress(b"".join(member(f"{number}") for number in range(100))) * 20)
    assert f"lacks {NAMES[0]}" in ends_well(find, cache, MEBIBYTE)  # tarfile alone would keep all 2,000


def test_a_bomb_ends_at_the_limit(
    cache: Path, brings: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES", 32 * MEBIBYTE)
    block = gzip.compress(member("zeros", bytes(8 * MEBIBYTE)), 1)
    brings(block * 3 + gzip.compress(b"".join(RIGHT)))
    find()
    assert _contents(cache) == FILES, "this much is allowed"
    for path in cache.iterdir():
        path.unlink()
    brings(block * 5 + gzip.compress(b"".join(RIGHT)))
    assert "more than 33554432 bytes" in ends_well(find, cache)


def test_an_archive_that_takes_too_long(
    cache: Path, brings: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "SECONDS", -1.0)
    brings(gzip.compress(b"".join(RIGHT)))
    assert "not unpacked in -1 s" in ends_well(find, cache)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.97])
def test_an_archive_that_is_cut(share: float, cache: Path, brings: Callable[[bytes], None]) -> None:
    whole = gzip.compress(b"".join([member("noise", random.Random(0).randbytes(5000)), *RIGHT[::-1]]))
    brings(whole[: int(share * len(whole))])
    assert "npm: " in ends_well(find, cache)
    assert NAMES[0] not in _contents(cache)


def test_archives_changed_at_random(cache: Path, tmp_path: Path) -> None:
    """Bytes of headers, with their checksums set right again so that they are believed, and bytes of the gzip."""
    rng, plain, path = random.Random(0), b"".join(RIGHT), tmp_path / "x.tgz"
    long_name = raw(b"L", b"L", b"%011o\0" % 200, b"n" * 200)
    plain = pax(b"13 path=abcd\n") + member("a", b"b") + long_name + member("b") + plain
    headers = [at for at in range(0, len(plain), 512) if plain[at + 257 : at + 262] == b"ustar"]
    wanted = {f"{FOLDER}/{name}": name for name in NAMES}
    ends = {"read": 0, "refused": 0}
    for _ in range(thorough(300, 20_000)):
        data = bytearray(plain)
        for _ in range(rng.randint(1, 3)):
            at = rng.choice(headers)
            start = rng.choice([0, 100, 124, 156, 345, 386, 482, 483])
            for _ in range(rng.randint(1, 12)):
                data[at + start + rng.randrange(12)] = rng.choice([0, 1, 32, 48, 55, 57, 76, 83, 120, 128, 255])
            if rng.random() < 0.9:
                data[at : at + 512] = signed(data[at : at + 512])
        packed = bytearray(gzip.compress(bytes(data), 1))
        if rng.random() < 0.2:
            packed[rng.randrange(len(packed))] = rng.randrange(256)
        path.write_bytes(packed)
        try:
            for _, part in unpacking.members(path, wanted, 1000):
                assert len(part) <= 1000
            ends["read"] += 1
        except ArchiveError:
            ends["refused"] += 1
    assert min(ends.values()) > 10, ends


def test_npm_that_brings_without_end_is_stopped(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "NPM_BYTES", 2 * MEBIBYTE)
    monkeypatch.setattr(download, "NPM_SECONDS", 60.0)
    code = "f = open('x', 'wb', 0)\nimport time\nfor _ in range(3000):\n f.write(bytes(100_000)); time.sleep(.01)"
    (tmp_path / "work").mkdir()
    with (
        (tmp_path / "log").open("wb") as output,
        pytest.raises(download._SourceError, match="wrote more than 2097152 bytes"),
    ):
        download._run([sys.executable, "-c", code], tmp_path / "work", output, False)
    assert (tmp_path / "work" / "x").stat().st_size < 100 * MEBIBYTE


# --- servers


class Server:
    """Answers every request on the loopback by `answer(path, send)`, in raw bytes."""

    def __init__(self) -> None:
        self.answer: Callable[[str, Send], None] = lambda path, send: None
        self.asked: list[str] = []
        self.over = threading.Event()
        self.port = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def trickle(self, send: Send, data: bytes) -> None:
        """Until the client has gone or the test is over."""
        while not self.over.wait(0.01):
            send(data)

    def flood(self, send: Send, data: bytes) -> None:
        while not self.over.is_set():
            send(data)


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                path = self.rfile.readline().split()[1].decode()
                while self.rfile.readline().strip():
                    pass
                state.asked.append(path)
                state.answer(path, self.connection.sendall)
            except (OSError, IndexError):  # the client has gone
                pass

    class Threading(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Threading(("127.0.0.1", 0), Handler) as listening:
        state.port = listening.server_address[1]
        monkeypatch.setattr(download, "BASE_URL", state.url(""))
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield state
        state.over.set()
        listening.shutdown()
        thread.join()


def head(status: str = "200 OK", *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode("latin-1")


def body_of(path: str) -> bytes:
    return FILES[path.rpartition("/")[2]]


def whole(path: str, send: Send) -> None:
    send(head("200 OK", f"Content-Length: {len(body_of(path))}") + body_of(path))


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_file_reads_nothing(code: int, server: Server, cache: Path, tmp_path: Path) -> None:
    """The file holds the right bytes: would it be read, it would be stored."""
    secret = tmp_path / "secret"
    secret.write_bytes(FILES[NAMES[0]])
    for place in (secret.as_uri(), f"file://localhost{secret.as_posix()}", f"file:{secret.as_posix()}"):
        server.answer = lambda path, send, place=place: send(head(f"{code} Found", f"Location: {place}"))
        ends_well(find, cache)
        assert _contents(cache) == {}


def test_a_redirect_to_ftp_or_data_is_refused(server: Server, cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ftp:
        port = ftp.getsockname()[1]
        for place in (
            f"ftp://127.0.0.1:{port}/{NAMES[0]}",
            "data:,%5B%5D",
            "gopher://127.0.0.1/",
            "//",
            "http:",
            "\x01",
        ):
            server.answer = lambda path, send, place=place: send(head("302 Found", f"Location: {place}"))
            ends_well(find, cache)
        ftp.settimeout(0.05)
        with pytest.raises(TimeoutError):
            ftp.accept()
    assert _contents(cache) == {}


def test_another_host_may_answer_since_the_checksum_decides(server: Server, cache: Path) -> None:
    def moved(path: str, send: Send) -> None:
        if path.startswith("/there"):
            whole(path, send)
        else:
            send(head("302 Found", f"Location: http://localhost:{server.port}/there/{path.rpartition('/')[2]}"))

    server.answer = moved
    find()
    assert _contents(cache) == FILES


@pytest.mark.parametrize("grows", [False, True])
def test_redirects_without_end(grows: bool, server: Server, cache: Path) -> None:
    server.answer = lambda path, send: send(head("302 Found", f"Location: {path}{'x' * grows}"))
    assert "redirect" in ends_well(find, cache)
    assert len(server.asked) < 15 and _contents(cache) == {}


def test_https_is_not_left_for_http() -> None:
    def follow(start: str, place: str) -> Request | None:
        return download._Redirects().redirect_request(Request(start), None, 302, "Found", {}, place)

    for start, place in (("http://a/x", "https://a/x"), ("http://a/x", "http://b/x"), ("https://a/x", "https://b/x")):
        followed = follow(start, place)
        assert followed is not None and followed.full_url == place
    for start, place in (("https://a/x", "http://a/x"), ("https://a/x", "ftp://a/x"), ("http://a/x", "file:///x")):
        with pytest.raises(HTTPError, match=f"refused a redirect to {place}"):
            follow(start, place)


def answers(server: Server) -> dict[str, Callable[[str, Send], None]]:
    """What servers say that mean harm, or only no good."""
    chunked = head("200 OK", "Transfer-Encoding: chunked")

    def bodies(build: Callable[[bytes], bytes]) -> Callable[[str, Send], None]:
        return lambda path, send: send(build(body_of(path)))

    def flood(start: bytes, data: bytes) -> Callable[[str, Send], None]:
        return lambda path, send: (send(start), server.flood(send, data))[0]

    page = b"<!DOCTYPE html><title>Sign in</title>"
    return {
        "nothing": lambda path, send: None,
        "too long a length": bodies(lambda body: head("200 OK", f"Content-Length: {len(body)}") + body[:-9]),
        "too short a length": bodies(lambda body: head("200 OK", f"Content-Length: {len(body) - 9}") + body),
        "a huge length": bodies(lambda body: head("200 OK", f"Content-Length: {10**30}") + body[:-1]),
        "a negative length": bodies(lambda body: head("200 OK", "Content-Length: -1") + body + b"x"),
        "no length and more": bodies(lambda body: head() + body + b"x"),
        "gzip": bodies(lambda body: head("200 OK", "Content-Encoding: gzip") + gzip.compress(body)),
        "deflate": bodies(lambda body: head("200 OK", "Content-Encoding: deflate") + zlib.compress(body)),
        "a page": bodies(lambda body: head("200 OK", f"Content-Length: {len(page)}") + page),
        "a part": bodies(lambda body: head("206 Partial Content") + body[:-1]),
        "no content": bodies(lambda body: head("204 No Content")),
        "bad chunks": bodies(lambda body: chunked + b"zz\r\n" + body),
        "a huge chunk": bodies(lambda body: chunked + b"fffffffffffffffff\r\n" + body),
        "a negative chunk": bodies(lambda body: chunked + b"-5\r\n" + body),
        "no HTTP": bodies(lambda body: body),
        "a status of no number": bodies(lambda body: b"HTTP/1.1 ok\r\n\r\n"),
        "escapes": bodies(lambda body: b"HTTP/1.1 404 \x1b[2J\x1b]0;owned\x07\x9b2J\r\n\r\n"),
        "a long reason": bodies(lambda body: b"HTTP/1.1 404 " + b"no " * 20_000 + b"\r\n\r\n"),
        "an endless body": flood(head(), bytes(2**16)),
        "endless chunks": flood(chunked, b"10000\r\n" + bytes(2**16) + b"\r\n"),
        "endless fields": flood(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 1000),
        "an endless field": flood(b"HTTP/1.1 200 OK\r\na: ", b"b" * 2**16),
        "an endless status": flood(b"HTTP/1.1 200 ", b"O" * 2**16),
        "endless chunk fields": flood(chunked, b"1;" + b"a" * 2**16),
    }


@pytest.mark.parametrize("kind", answers(Server()))
def test_what_a_server_may_not_say(
    kind: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", MEBIBYTE)
    server.answer = answers(server)[kind]
    ends_well(find, cache)
    assert _contents(cache) == {}
    _one_line(lambda: tang.find(None, 3))  # with its progress shown
    shown = capsys.readouterr().err
    assert "\x1b[2J" not in shown and "\x07" not in shown and len(shown) < 4000


@pytest.mark.parametrize(
    ("limit", "start", "drop"),
    [
        ("FILE_SECONDS", head(), b"x"),
        ("FILE_SECONDS", head("200 OK", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
        ("CONNECT_SECONDS", b"HTTP/1.1 200 OK\r\na: ", b"b"),
        ("CONNECT_SECONDS", b"", head("100 Continue")),
    ],
    ids=["body", "chunks", "head", "continue"],
)
def test_an_answer_that_trickles(
    limit: str, start: bytes, drop: bytes, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, limit, 0.2)
    server.answer = lambda path, send: (send(start), server.trickle(send, drop))[0]
    assert "no answer in 0.2 s" in ends_well(find, cache)
    assert _contents(cache) == {}


# --- the cache folder


def serve_all(server: Server) -> None:
    server.answer = whole


needs_links = pytest.mark.skipif(os.name == "nt", reason="links and pipes need rights there")


@needs_links
def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left_alone(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    serve_all(server)
    cache.mkdir(parents=True)
    target, dangling = tmp_path / "target", tmp_path / "nowhere"
    target.write_bytes(b"mine")
    (cache / NAMES[0]).symlink_to(target)
    (cache / NAMES[1]).symlink_to(dangling)
    (cache / NAMES[2]).symlink_to(cache / NAMES[2])
    find()
    assert _contents(cache) == FILES and not any(path.is_symlink() for path in cache.iterdir())
    assert target.read_bytes() == b"mine" and not dangling.exists()


@needs_links
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_never_ends_in_the_place_of_a_file_is_not_read(kind: str, server: Server, cache: Path) -> None:
    serve_all(server)
    cache.mkdir(parents=True)
    place = cache / NAMES[0]
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        with place.open("wb") as file:
            file.truncate(1 << 40)
    find()
    assert _contents(cache) == FILES and not any(path.is_symlink() for path in cache.iterdir())


def test_a_folder_in_the_place_of_a_file_is_named(server: Server, cache: Path) -> None:
    serve_all(server)
    (cache / NAMES[0]).mkdir(parents=True)
    message = _one_line(find)
    assert str(cache) in message and f"{NAMES[0]} is a folder" in message
    assert [path.name for path in cache.iterdir()] == [NAMES[0]]


@needs_links
def test_a_cache_folder_that_is_a_link(server: Server, cache: Path, tmp_path: Path) -> None:
    serve_all(server)
    cache.parent.mkdir()
    (tmp_path / "disk").mkdir()
    cache.symlink_to(tmp_path / "disk")
    find()
    assert _contents(tmp_path / "disk") == FILES
    for place in (tmp_path / "gone", cache):  # a dangling one, and one that leads to itself
        cache.unlink()
        cache.symlink_to(place)
        assert str(cache) in _one_line(find) and not (tmp_path / "gone").exists()


@needs_links
def test_sweeping_removes_a_link_and_not_where_it_leads(server: Server, cache: Path, tmp_path: Path) -> None:
    serve_all(server)
    cache.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"mine")
    for number, place in enumerate([tmp_path / "mine", tmp_path / "mine" / "file", tmp_path / "nowhere"]):
        link = cache / f"{download.TEMPORARY}{number}"
        link.symlink_to(place)
        os.utime(link, (0, 0), follow_symlinks=False)
    find()
    assert _contents(cache) == FILES
    assert (tmp_path / "mine" / "file").read_bytes() == b"mine"


# --- files


PIECES = [
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b'"paragraphs"',
        b'"paragraphs":[',
        b'"\xe7\x94\xb2"',
        b"null",
        b"true",
    ),
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"9" * 5000,
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\u0000"',
        b"\\",
        b"\n",
    ),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x00",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
        b"[" * 3000,
        b"{}",
        b"[]",
    ),
    *(b"\xef\xbc\x88", b"\xef\xbc\x89", b"\xe2\x80\xa8", b"\x1b[2J", b"\r", b" ", b"0", b'{"paragraphs":' * 2000),
]


def mutated(rng: random.Random) -> bytes:
    """A file of poems with pieces put in, taken out, doubled, or changed; or pieces alone, or noise."""
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randint(0, 300))
    if kind < 0.3:
        return b"".join(rng.choices(PIECES, k=rng.randint(0, 12)))
    data = bytearray(rng.choice(list(FILES.values())))
    for _ in range(rng.randint(1, 4)):
        start, length = rng.randrange(len(data) + 1), rng.randint(0, 20)
        part = [rng.choice(PIECES), b"", data[start : start + length] * 2, rng.randbytes(length)][rng.randrange(4)]
        data[start : start + length] = part
    return bytes(data)


def test_files_changed_at_random_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "file"
    ends = {"read": 0, "refused": 0}
    for _ in range(thorough(500, 20_000)):
        path.write_bytes(mutated(rng))
        for read in (lambda: tang.read([path]), lambda: tang.read_text(path, max_length=50)):
            try:
                poems, counts = read()
            except tang.CorpusError as error:
                assert str(error).splitlines() == [str(error)] and str(path) in str(error)
                ends["refused"] += 1
            else:
                "".join(poems).encode("utf-8")  # half a surrogate pair could not be
                assert counts["read"] == sum(counts.values()) - counts["read"] and counts["kept"] == len(poems)
                ends["read"] += 1
    assert min(ends.values()) > 50, ends


@pytest.mark.parametrize(
    "entry",
    [
        '{"paragraphs": ["甲"], "paragraphs": ["乙"]}',
        '{"paragraphs": ["乙"], "more": NaN, "n": -Infinity, "big": 1e999}',
        '{"paragraphs": ["\\ud800乙\\udc00"]}',
        '{"paragraphs": ["乙"], "deep": ' + "[" * 400 + "]" * 400 + "}",
    ],
    ids=["twice", "no numbers", "halves", "deep"],
)
def test_what_is_strange_in_an_entry_is_no_trouble(entry: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(f"\ufeff[{entry}]".encode())
    assert tang.read([path]).poems == ["乙"]


def test_brackets_that_never_close_take_no_longer_than_others(tmp_path: Path) -> None:
    """Looked for to the end of the poem by each, they would take minutes: that the test ends is the proof."""
    path = tmp_path / "file"
    text = "".join(bracket * 50_000 for bracket in "（[「{")
    path.write_text(json.dumps([{"paragraphs": [text]}, {"paragraphs": ["（）" + text]}]), encoding="utf-8")
    assert tang.read([path], unique=False).poems == [text, text]
