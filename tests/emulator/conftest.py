"""For the tests that run something on the emulator."""

from __future__ import annotations

import os

import emulator
import pytest


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """The emulator is built, or these tests are skipped with the reason; an error where CI asks for them."""
    try:
        emulator.python()
    except emulator.Unavailable as error:
        if os.environ.get("MINIDL_EMULATOR_REQUIRED"):
            raise
        pytest.skip(str(error))
