"""Fixtures for tests that need a CUDA device: a GPU, or the emulator in tests/emulator, which runs this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import agreement
import pytest

from minidl import backend


@pytest.fixture(scope="session")
def cupy() -> Any:
    """CuPy, with a device to run on."""
    try:
        return backend.get("cupy")
    except backend.BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def finished(request: pytest.FixtureRequest) -> Iterator[None]:
    """Finish all device work of a test before the next begins, so that a fault is reported where it was caused."""
    cupy = request.getfixturevalue("cupy")
    yield
    cupy.cuda.Device().synchronize()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = agreement.summary()
    if lines:
        terminalreporter.section("largest differences to NumPy, relative to the largest value")
        for line in lines:
            terminalreporter.line(line)
