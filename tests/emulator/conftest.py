"""Fixtures for the tests that use the emulator."""

from __future__ import annotations

import os

import emulator
import pytest


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """Build the emulator, or skip these tests with the reason; raise if CI requires them."""
    try:
        emulator.python()
    except emulator.Unavailable as error:
        if os.environ.get("MINIDL_EMULATOR_REQUIRED"):
            raise
        pytest.skip(str(error))
