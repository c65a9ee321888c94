"""The emulator is rebuilt when its inputs change, only once, and completely or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import emulator_build
import pytest

pytestmark = pytest.mark.cupy
ENVIRONMENT = Path("environment-of-this-test")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are built; a placeholder file replaces the compiled libraries."""
    found: list[Path] = []

    def make(folder: Path, environment: Path) -> None:
        folder.mkdir()
        (folder / "lib").write_text("a library", encoding="utf-8")
        found.append(folder)

    shutil.copytree(emulator_build.HERE, tmp_path / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(emulator_build, "HERE", tmp_path / "sources")
    monkeypatch.setattr(emulator_build, "_make_driver", make)
    monkeypatch.setenv("MINIDL_EMULATOR_CACHE", str(tmp_path / "cache"))
    return found


@pytest.mark.parametrize("file", ["driver/blas.cpp", "device/cupy/atomics.cuh", "start/compile_kernel.py"])
def test_a_change_builds_again_and_nothing_else_does(file: str, made: list[Path], tmp_path: Path) -> None:
    first = emulator_build.driver_folder(ENVIRONMENT)
    assert emulator_build.driver_folder(ENVIRONMENT) == first and len(made) == 1
    source = tmp_path / "sources" / file
    source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    second = emulator_build.driver_folder(ENVIRONMENT)
    assert second != first and len(made) == 2
    other = emulator_build.driver_folder(Path("another-environment"))
    assert other not in (first, second)
    assert all((folder / "lib").exists() for folder in (first, second, other))


def test_what_fails_leaves_nothing(made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, environment: Path) -> Any:
        folder.mkdir()
        raise RuntimeError("g++ is out of sorts")

    make = emulator_build._make_driver
    monkeypatch.setattr(emulator_build, "_make_driver", fail)
    with pytest.raises(RuntimeError, match="out of sorts"):
        emulator_build.driver_folder(ENVIRONMENT)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(emulator_build, "_make_driver", make)
    assert (emulator_build.driver_folder(ENVIRONMENT) / "lib").exists()


def test_without_a_compiler_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(emulator_build.Unavailable, match=r"g\+\+"):
        emulator_build.environment_folder()
