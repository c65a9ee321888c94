"""The rooms of examples/poetry: imports run one way, and the training step is one file away from train.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from poetry_helpers import PROGRAMS

FILES = sorted(path for path in PROGRAMS.rglob("*.py") if "fonts" not in path.parts)
ROOMS = {"common": 0, "corpus": 1, "model": 2, "learning": 3, "verse": 3}  # learning and verse do not know each other
PROGRAM = 4
NAMES = [str(path.relative_to(PROGRAMS)) for path in FILES]


def imported(path: Path) -> set[str]:
    """The full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = path.relative_to(PROGRAMS).parts[0].removesuffix(".py")
    rooms = {name.split(".")[0] for name in imported(path)}
    assert not rooms & {file.stem for file in PROGRAMS.glob("*.py")} - {"model"}, "no module imports a program"
    for other in rooms & ROOMS.keys() - {room}:
        assert ROOMS[other] < ROOMS.get(room, PROGRAM), f"{path} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and "add_argument" not in ast.unparse(node):
            assert (node.end_lineno or 0) - node.lineno <= 65, node.name


def test_the_step_is_in_the_file_that_train_imports_for_it() -> None:
    assert "learning.training" in imported(PROGRAMS / "train.py")
    source = ast.parse((PROGRAMS / "learning" / "training.py").read_text(encoding="utf-8"))
    (step,) = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "train_step"]
    calls = [ast.unparse(node.func) for node in ast.walk(step) if isinstance(node, ast.Call)]
    assert {"optimizer.zero_grad", "model.forward_backward", "optimizer.step"} <= set(calls)
    assert len(step.args.args) + len(step.args.kwonlyargs) <= 5
