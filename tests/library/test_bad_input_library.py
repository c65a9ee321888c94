"""Bad input to everything minidl exports: a documented one-line error that names the argument, and no side effects.

Each public function has a Subject in public_functions.py; the first tests fail if one is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refuses
from public_functions import NO_INPUT, Subject, parameters, public, subjects

import minidl
from minidl.gradcheck import _floats

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
    positional = [arguments.pop(name) for name in ("inputs", "layers") if name in arguments]
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
def test_a_bad_argument_is_reported_in_one_line_and_changes_nothing(name: str, parameter: str) -> None:
    good, kind = made(name)[0].arguments[parameter]
    failures = []
    for what, value, error in kind(good):
        subject, arguments = made(name)
        arguments[parameter] = value
        word = (subject.words or {}).get(parameter, parameter)
        if what.startswith("sizes "):
            word = "batch_sizes"
        try:
            with refuses(error, "" if error is MemoryError else word, keep=[subject.keep, list(arguments.values())]):
                called(subject, arguments)
        except BaseException as failure:
            failures.append(
                f"{what}: expected {error.__name__}, {type(failure).__name__}: {' '.join(str(failure).split())}"
            )
    assert not failures, "\n".join(failures)


def strided(value: Any, how: str) -> Any:
    """Arrays in `value` as views of the same numbers that are not contiguous, or in Fortran's order."""
    if isinstance(value, minidl.Packing):  # its rows are the host's, and read one by one
        return value
    if isinstance(value, tuple):
        return tuple(strided(part, how) for part in value)
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    if how == "columns first":
        return np.asfortranarray(value)
    wide = np.repeat(value, 2, axis=-1)
    return wide[..., ::2] if how == "every second" else np.flip(np.flip(value, 0).copy(), 0)


ARRAYS = [
    name
    for name in SUBJECTS
    if name.split(".")[-1] in ("forward", "backward", "__call__", "step", "forward_backward", "logits")
    or name in ("softmax_cross_entropy", "sample", "to_host")
]


@pytest.mark.parametrize("how", ["every second", "columns first", "backwards"])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_not_contiguous_gives_what_its_copy_gives(name: str, how: str) -> None:
    results = []
    for change in (False, True):
        subject, arguments = made(name)
        changed = {
            key: strided(value, how) if change and key not in ("cache", "rng") else value
            for key, value in arguments.items()
        }
        outcome = called(subject, changed)
        grads = [p.grad for layer in subject.keep if isinstance(layer, minidl.Layer) for p in layer.parameters()]
        results.append([*_floats(outcome), *grads, *([outcome] if name == "sample" else [])])
    assert results[0]
    for contiguous, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, contiguous, rtol=1e-12, atol=1e-14)
