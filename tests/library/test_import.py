"""Importing minidl: it is light, documented, and each module imports only those below it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import minidl

PACKAGE = Path(minidl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports only those above it: the map of the design, with checks and initializers at their places.
ORDER = [
    "backend.device",
    "backend",
    "checks",
    "sequences",
    "kernels.cpu.cuts",
    "kernels.cpu.threads",
    "kernels.cpu.workspace",
    "parameter",
    "kernels",
    "kernels.cpu.dropout",
    "kernels.cpu.embedding",
    "kernels.cpu.lstm",
    "kernels.cpu.optimizers",
    "kernels.cpu.softmax",
    "kernels.cuda.launch",
    "kernels.cuda.product",
    "kernels.cuda.dropout",
    "kernels.cuda.embedding",
    "kernels.cuda.lstm",
    "kernels.cuda.optimizers",
    "kernels.cuda.softmax",
    "layer",
    "sequential",
    "initializers",
    "layers.dropout",
    "layers.embedding",
    "layers.linear",
    "layers.lstm",
    "losses",
    "optimizer",
    "optimizers",
    "schedules",
    "sampling",
    "gradcheck",
    "checkpoint",
    "interop",
    "backend.__main__",
]
LIBRARIES = {"numpy"}
LIBRARIES_OF = {
    name: {"threadpoolctl"} for name in ("kernels.cpu.threads", "backend.__main__")
}  # one small file of Python
LAZY_LIBRARIES = {"cupy", "cupyx", "safetensors", "torch"}  # imported inside the function that needs them


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def ids_of(files: list[Path]) -> list[str]:
    return [name_of(file) for file in files]


# the other packages' own files hold nothing, or only the public names
MODULES = [file for file in FILES if file.name != "__init__.py" or name_of(file) in ("backend", "kernels")]


def test_the_order_lists_every_module() -> None:
    assert sorted(ids_of(MODULES)) == sorted(ORDER)


@pytest.mark.parametrize("file", MODULES, ids=ids_of(MODULES))
def test_a_module_imports_only_those_above_it(file: Path) -> None:
    name = name_of(file)
    package = file.parent.relative_to(PACKAGE).parts
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{stem}.{alias.name}" if stem else alias.name
                imported.add(full if full in ORDER else stem)
    unknown = imported - set(ORDER)
    assert not unknown, f"{name} imports {unknown}, which no place in the order"
    assert all(ORDER.index(other) < ORDER.index(name) for other in imported), (name, imported)
    if name.startswith("layers."):
        others = {other for other in imported if other.startswith("layers.")}
        assert not others, "layers do not know each other"


@pytest.mark.parametrize("file", FILES, ids=ids_of(FILES))
def test_only_numpy_is_imported_at_the_top_of_a_module(file: Path) -> None:
    libraries = LIBRARIES | LAZY_LIBRARIES | LIBRARIES_OF.get(name_of(file), set())
    tree = ast.parse(file.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
            assert name in libraries, f"{name} is none of the libraries of minidl, or not of this module"
            assert name not in LAZY_LIBRARIES or id(node) not in top, f"{name} at the top of the module"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_minidl_loads_nothing_heavier_than_numpy() -> None:
    heavy = [
        "multiprocessing",
        "cupy",
        "cupyx",
        "matplotlib",
        "safetensors",
        "torch",
        "scipy",
        "hypothesis",
        "tqdm",
    ]
    code = f"import sys, minidl; print([name for name in {heavy} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_training_loads_nothing_more() -> None:
    code = """
import sys, numpy as np, minidl
lstm = minidl.LSTM(3, 4)
y, cache = lstm.forward(np.ones((5, 3), np.float32), minidl.Packing([2, 2, 1]))
lstm.backward(y, cache)
minidl.Adam(lstm.parameters()).step()
print([name for name in ("cupy", "minidl.kernels.cuda", "matplotlib", "safetensors", "torch") if name in sys.modules])
"""
    assert run(code).strip() == "[]"


def test_importing_minidl_warns_of_nothing_and_prints_nothing() -> None:
    assert run("import warnings; warnings.simplefilter('error'); import minidl") == ""


def test_all_names_exist_and_none_is_forgotten() -> None:
    assert len(set(minidl.__all__)) == len(minidl.__all__)
    assert all(hasattr(minidl, name) for name in minidl.__all__)
    namespace: dict[str, object] = {}
    exec("from minidl import *", namespace)
    assert set(minidl.__all__) <= set(namespace)
    public = {name for name, value in vars(minidl).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public | {"initializers", "interop"} == set(minidl.__all__)


def test_the_public_surface_is_there() -> None:
    """Programs of others are written against these signatures: the first arguments, in this order."""
    surface = {
        "Embedding": "num_embeddings embedding_dim",
        "Linear": "in_features out_features bias",
        "LSTM": "input_size hidden_size",
        "Dropout": "p",
        "softmax_cross_entropy": "logits targets",
        "LinearCrossEntropy": "in_features num_classes",
        "SGD": "params lr momentum",
        "AdaGrad": "params lr",
        "Adadelta": "params lr rho",
        "Adam": "params lr betas eps",
        "AdamW": "params lr betas eps weight_decay",
        "clip_grad_norm": "params max_norm",
        "pack": "sequences",
        "unpack": "batch",
        "sample": "logits temperature top_k top_p rng",
        "save": "path tensors metadata",
        "load": "path",
        "pack_rows": "ids starts lengths",
        "Packing": "batch_sizes order step rows",
        "Sequential": "layers",
        "gradcheck": "layer inputs rng state",
        "OneCycle": "optimizer max_lr total_steps warmup",
        "ExponentialDecay": "optimizer",
        "StepDecay": "optimizer",
    }
    for name, expected in surface.items():
        found = list(inspect.signature(getattr(minidl, name)).parameters)
        assert found[: len(expected.split())] == expected.split(), name
    for name in ("Embedding", "Linear", "LSTM", "Dropout", "LinearCrossEntropy"):
        parameters = inspect.signature(getattr(minidl, name)).parameters
        for keyword, default in (("dtype", "float32"), ("backend", "numpy"), ("rng", None)):
            assert parameters[keyword].default == default, name
            assert parameters[keyword].kind is inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize("file", FILES, ids=ids_of(FILES))
def test_every_public_class_and_function_has_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module has none"
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has none"


@pytest.mark.parametrize("file", FILES, ids=ids_of(FILES))
def test_files_and_functions_stay_short_enough_to_read(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 55, node.name
