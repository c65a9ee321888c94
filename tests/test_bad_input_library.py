"""Bad input to all that minidl exports: a documented error in one line that names the argument, and nothing changed.

Each public function has a Subject in public_functions.py; one that is missing there fails the first tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refuses
from public_functions import NO_INPUT, Subject, parameters, public, subjects

PUBLIC = dict(public())
SUBJECTS = subjects()
PARAMETERS = [(name, parameter) for name in SUBJECTS for parameter in parameters(PUBLIC[name])]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the table are in the working folder."""
    monkeypatch.chdir(tmp_path)


def made(name: str) -> tuple[Subject, dict[str, Any]]:
    """A subject and its good arguments; a generator in place of "fresh entropy", to see that it does not advance."""
    subject = subjects()[name]()
    arguments = {key: good for key, (good, _) in subject.arguments.items()}
    if arguments.get("rng", 0) is None:
        arguments["rng"] = np.random.default_rng(0)
    return subject, arguments


def called(subject: Subject, arguments: dict[str, Any]) -> Any:
    positional = [arguments.pop("inputs")] if "inputs" in arguments else []
    if positional and "layer" in arguments:
        positional.insert(0, arguments.pop("layer"))
    return subject.call(*positional, **arguments)


def test_every_public_function_is_in_the_table() -> None:
    assert set(PUBLIC) - NO_INPUT.keys() == set(SUBJECTS)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_parameter_is_in_the_table_and_the_good_arguments_are_good(name: str) -> None:
    subject, arguments = made(name)
    assert sorted(subject.arguments) == sorted(parameters(PUBLIC[name]))
    called(subject, arguments)


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=[f"{name}({key})" for name, key in PARAMETERS])
def test_a_bad_argument_is_told_in_one_line_and_changes_nothing(name: str, parameter: str) -> None:
    good, kind = made(name)[0].arguments[parameter]
    failures = []
    for what, value, error in kind(good):
        subject, arguments = made(name)
        arguments[parameter] = value
        word = (subject.words or {}).get(parameter, parameter)
        try:
            with refuses(error, "" if error is MemoryError else word, keep=[subject.keep, list(arguments.values())]):
                called(subject, arguments)
        except BaseException as failure:
            failures.append(
                f"{what}: expected {error.__name__}, {type(failure).__name__}: {' '.join(str(failure).split())}"
            )
    assert not failures, "\n".join(failures)
