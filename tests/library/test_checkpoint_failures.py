"""save when the disk or the folder refuses: the old file stays intact, and no temporary file remains."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import TINY, fails, same
from helpers import python

import minidl

LARGE = {"a": np.ones(1000)}


class Crash(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


Break = Callable[[pytest.MonkeyPatch, BaseException], None]


def break_function(name: str, only: Callable[..., bool] = lambda *_: True) -> Break:
    def install(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        real = getattr(os, name)

        def broken(*arguments: Any) -> Any:
            if only(*arguments):
                raise error
            return real(*arguments)

        monkeypatch.setattr(os, name, broken)

    return install


def break_open(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", broken)


def break_file(*methods: str) -> Break:
    """The new file's `methods` fail, a write halfway through."""

    def install(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        real = Path.open

        def broken_open(path: Path, mode: str) -> Any:
            file = real(path, mode)

            def broken(method: str, content: bytes = b"") -> None:
                getattr(file, method)(*([content[: len(content) // 2]] if method == "write" else []))
                raise error

            return Overlay(file, {method: partial(broken, method) for method in methods})

        monkeypatch.setattr(Path, "open", broken_open)

    return install


class Overlay:
    """A file with some of its methods replaced."""

    def __init__(self, file: Any, methods: dict[str, Any]) -> None:
        self.__dict__.update(methods, file=file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


BEFORE_THE_NEW_FILE_IS_IN_PLACE: dict[str, Break] = {
    "open": break_open,
    "sweep": break_function("fstat"),
    "write": break_file("write"),
    "write and close": break_file("write", "close"),
    "flush": break_file("flush"),
    "fsync": break_function("fsync"),
    "close": break_file("close"),
    "replace": break_function("replace"),
}


@pytest.mark.parametrize("where", BEFORE_THE_NEW_FILE_IS_IN_PLACE)
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), Crash("killed")], ids=["disk", "crash"]
)
def test_a_failed_save_leaves_the_old_file_whole_and_nothing_beside_it(
    where: str, existing: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    if existing:
        minidl.save(path, *TINY)
        before = path.read_bytes()
    with monkeypatch.context() as patch:
        BEFORE_THE_NEW_FILE_IS_IN_PLACE[where](patch, error)
        if isinstance(error, OSError):
            with fails(path, "cannot be written", "No space left on device"):
                minidl.save(path, LARGE, {})
        else:
            with pytest.raises(Crash):
                minidl.save(path, LARGE, {})
    assert os.listdir(tmp_path) == (["c"] if existing else [])
    if existing:
        assert path.read_bytes() == before
    minidl.save(path, LARGE, {})  # and the next try succeeds
    assert same(minidl.load(path)[0], LARGE)


posix = pytest.mark.skipif(os.name != "posix", reason="only POSIX has fsync for folders")


@posix
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_file_system_without_fsync_for_folders_is_no_error(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = is_folder if call == "fsync" else lambda path, flags: True
    break_function(call, only)(monkeypatch, OSError(number, os.strerror(number)))
    minidl.save(tmp_path / "c", *TINY)
    monkeypatch.undo()
    assert same(minidl.load(tmp_path / "c")[0], TINY[0])


@posix
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_at_the_folder_is_reported_and_the_new_file_is_there_whole(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minidl.save(tmp_path / "c", *TINY)
    break_function("fsync", is_folder)(monkeypatch, OSError(number, os.strerror(number)))
    with fails(tmp_path / "c", "cannot be written", os.strerror(number)):
        minidl.save(tmp_path / "c", LARGE, {})
    assert os.listdir(tmp_path) == ["c"] and same(minidl.load(tmp_path / "c")[0], LARGE)


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        if kind == "file":
            assert os.fstat(descriptor).st_size > 50, "fsync before the content was written"
        calls.append(f"fsync {kind}")
        fsync(descriptor)

    def watched_replace(source: Any, target: Any) -> None:
        assert Path(source).parent == Path(target).parent, "another folder may be another disk"
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    minidl.save(tmp_path / "c", *TINY)
    assert calls == ["fsync file", "replace", "fsync folder"][: 3 if os.name == "posix" else 2]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with fails(tmp_path / "folder", "cannot be written", "directory"):
        minidl.save(tmp_path / "folder", *TINY)
    with fails(tmp_path / "none" / "c", "cannot be written", "No such file"):
        minidl.save(tmp_path / "none" / "c", *TINY)
    (tmp_path / "file").write_bytes(b"")
    with fails(tmp_path / "file" / "c", "cannot be written"):
        minidl.save(tmp_path / "file" / "c", *TINY)
    with fails(tmp_path / ("x" * 300), "cannot be written", "too long"):
        minidl.save(tmp_path / ("x" * 300), *TINY)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# Disks and folders that really refuse


@pytest.mark.skipif(os.name != "posix", reason="only POSIX limits the size of files")
def test_a_disk_that_takes_only_a_part_of_the_file(tmp_path: Path) -> None:
    """The kernel itself cuts the write short and then refuses it, as on a full disk."""
    path = tmp_path / "c"
    minidl.save(path, *TINY)
    before = path.read_bytes()
    told = python(f"""
        import resource, signal
        import numpy as np
        import minidl
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error then, and no death
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            minidl.save({str(path)!r}, {{"a": np.ones(1_000_000)}}, {{}})
        except minidl.CheckpointError as error:
            print(error)
    """)
    assert told == f"{path}: cannot be written ({os.strerror(errno.EFBIG)})"
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is a link to /dev/full and is opened as such; the kernel does the rest."""
    path = tmp_path / "c"
    minidl.save(path, *TINY)
    before = path.read_bytes()

    def linked(file: Path, mode: str) -> Any:
        assert mode == "xb"
        file.symlink_to("/dev/full")
        return open(file, "wb")

    with monkeypatch.context() as patch, fails(path, "cannot be written", os.strerror(errno.ENOSPC)):
        patch.setattr(Path, "open", linked)
        minidl.save(path, {"a": np.ones(100_000)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c"]


def test_a_folder_that_must_not_be_written(tmp_path: Path) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("permissions do not hold back the superuser, nor do they work so on Windows")
    path = tmp_path / "c"
    minidl.save(path, *TINY)
    before = path.read_bytes()
    tmp_path.chmod(0o555)
    try:
        with fails(path, "cannot be written", os.strerror(errno.EACCES)):
            minidl.save(path, LARGE, {})
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["c"]
        assert same(minidl.load(path)[0], TINY[0])
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_even_the_superuser_cannot_write() -> None:
    with fails(Path("/proc/c"), "cannot be written"):
        minidl.save("/proc/c", *TINY)


# What killed saves left, and whose file it is


def leave(path: Path, age: float) -> Path:
    """An unfinished file as a save that was killed `age` seconds ago leaves it."""
    here = set(path.parent.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        break_file("write", "close")(patch, Crash("killed"))
        break_function("unlink")(patch, OSError("dead"))
        with pytest.raises(Crash):
            minidl.save(path, LARGE, {})
    (left,) = set(path.parent.iterdir()) - here
    when = left.stat().st_mtime - age
    os.utime(left, (when, when))
    return left


def test_what_killed_saves_left_is_deleted_by_a_later_save_of_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "c (1)+"
    old = [leave(path, age=4000) for _ in range(3)]
    saving = leave(path, age=3000)  # another process may still be at it
    others = [leave(tmp_path / name, age=4000) for name in ("c", "c (1)+.more")]
    mine = [tmp_path / name for name in (".c (1)+.tmp", ".c (1)+.notes.tmp", "c (1)+.0123456789abcdef.tmp")]
    for file in mine:
        file.write_bytes(b"")
        os.utime(file, (0, 0))
    minidl.save(path, *TINY)
    assert {*tmp_path.iterdir()} == {path, saving, *others, *mine} and len(old) == 3


@pytest.mark.skipif(os.utime not in os.supports_follow_symlinks, reason="no way to set the age of a link")
@pytest.mark.parametrize(("link_age", "target_age", "stays"), [(0, 4000, True), (4000, 0, False)])
def test_a_link_counts_by_its_own_age(link_age: int, target_age: int, stays: bool, tmp_path: Path) -> None:
    link, target = leave(tmp_path / "c", age=0), tmp_path / "target"
    now = link.stat().st_mtime
    link.unlink()
    target.write_bytes(b"another's")
    os.utime(target, (now - target_age, now - target_age))
    link.symlink_to(target)
    os.utime(link, (now - link_age, now - link_age), follow_symlinks=False)
    minidl.save(tmp_path / "c", *TINY)
    assert link.is_symlink() is stays and target.read_bytes() == b"another's"


def test_what_cannot_be_deleted_does_not_stop_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(tmp_path / "c", age=4000)
    break_function("unlink")(monkeypatch, PermissionError(errno.EACCES, "open elsewhere"))
    minidl.save(tmp_path / "c", *TINY)
    break_function("scandir")(monkeypatch, PermissionError(errno.EACCES, "not to be listed"))
    minidl.save(tmp_path / "c", *TINY)
    assert {*tmp_path.iterdir()} == {tmp_path / "c", left}


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_file_is_as_readable_as_any_new_file(mask: int, tmp_path: Path) -> None:
    """In a separate process: the umask belongs to the process, so `save` cannot read it by setting it."""
    code = f"""
        import os, minidl
        os.umask({mask})
        os.umask = lambda mask: print("touched")
        minidl.save({str(tmp_path / "c")!r}, {{}}, {{}})
    """
    assert python(code) == ""
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o666 & ~mask
