"""Set up before any test: warnings, the example's modules by name, and hypothesis without a clock or a database."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests multiply small matrices, where threads that wait for each other cost more than they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "examples" / "poetry")]

settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60, print_blob=True)
settings.register_profile("thorough", derandomize=False, deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("thorough" if os.environ.get("MINIDL_THOROUGH") == "1" else "suite")


def pytest_configure(config: pytest.Config) -> None:
    """A warning that points at this project's code is an error; what another package or a plugin warns of is not."""
    files = [file for part in ("examples", "benchmarks", "docs", "tests") for file in (ROOT / part).rglob("*.py")]
    ours = "|".join(sorted({"minidl", "__main__", *(name for file in files for name in (file.stem, file.parent.name))}))
    config.addinivalue_line("filterwarnings", rf"error:::({ours})(\.|$)")


@pytest.fixture
def as_many_threads_afterwards() -> Iterator[None]:
    from small_model import number_of_threads  # not above: NumPy reads the environment when it is imported

    from minidl import get_num_threads

    with number_of_threads(get_num_threads()):
        yield


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tasks in every call of `threads.run` from now on."""
    from minidl.kernels.cpu import threads

    found: list[int] = []
    run = threads.run

    def watched(tasks: Any, parts: int | None = None) -> Any:
        found.append(min(len(tasks), parts or len(tasks)))
        return run(tasks, parts)

    monkeypatch.setattr(threads, "run", watched)
    return found
