"""Error messages when CuPy cannot work, also from `python -m minidl.backend`, tested with broken doubles of CuPy."""

from __future__ import annotations

import errno
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import device_double
import numpy as np
import pytest
from helpers import refuses

import minidl
from minidl import backend
from minidl.backend import __main__ as report
from minidl.backend import device


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A double of CuPy that nobody has looked at yet, on a machine where no package of CuPy is installed."""
    double = device_double.install(monkeypatch)
    monkeypatch.setattr(device, "_usable", None)
    monkeypatch.setattr(device, "packages", lambda: {"cupy-cuda12x": "14.2.0"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return double


def fails(message: str, kind: type[Exception] = RuntimeError) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise kind(message)

    return function


def refuses_a_file(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied", "/home/me/.cupy/tmp1")


class OutOfMemoryError(MemoryError):
    """As CuPy's own, a MemoryError."""


NVRTC = 'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13\nsecond line'
CUBLAS = 'Failure finding "libcublasLt.so.13 or libcublasLt.so.12"'
FULL = "Out of memory allocating 512 bytes (allocated so far: 0 bytes)."
INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_DEVICE = "cudaErrorNoDevice: no CUDA-capable device is detected"

# Literal, for a reader and so that a wrong pin shows
PINS = {12: "'cupy-cuda12x[ctk]>=14,<15'", 13: "'cupy-cuda13x[ctk]>=14,<15'"}

# what is set on the double, by dotted name, and words of the message, in their order
BROKEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "CuPy too old": (
        {"__version__": "13.6.0"},
        [
            "needs CuPy 14, this is 13.6.0",
            "pip uninstall --yes cupy-cuda12x",
            f"pip install {PINS[13]}",
        ],
    ),
    "CuPy for no CUDA that it knows": (
        {"cuda.runtime.runtimeGetVersion": lambda: 11080},
        ["for CUDA 12 or 13, this is for 11", "pip uninstall", "pip install"],
    ),
    "no driver": (
        # as CuPy has it: the second call would tell of an insufficient driver, which there is none of
        {"cuda.runtime.driverGetVersion": lambda: 0, "cuda.runtime.getDeviceCount": fails(INSUFFICIENT)},
        ["finds no NVIDIA driver", "https://www.nvidia.com/drivers", "--gpus all"],
    ),
    "a driver that cannot be asked": (
        {"cuda.runtime.driverGetVersion": fails("cudaErrorUnknown: unknown error\nmore")},
        ["driver version", "cudaErrorUnknown: unknown error", "nvidia-smi"],
    ),
    "a driver too old": (
        {"cuda.runtime.driverGetVersion": lambda: 11080},
        ["driver that is too old", "built for CUDA 12", "supports CUDA 11.8", "driver 525 or later"],
    ),
    "a driver too old for this wheel": (
        {"cuda.runtime.driverGetVersion": lambda: 12040, "cuda.runtime.runtimeGetVersion": lambda: 13000},
        [
            "built for CUDA 13",
            "supports CUDA 12.4",
            "driver 580",
            "pip uninstall",
            f"pip install {PINS[12]}",
        ],
    ),
    "no device": ({"cuda.runtime.getDeviceCount": lambda: 0}, ["the driver finds none", "nvidia-smi"]),
    "no device, by an error": (
        {"cuda.runtime.getDeviceCount": fails(NO_DEVICE)},
        ["the driver finds none", "nvidia-smi"],
    ),
    "a device that does not answer": (
        {"cuda.runtime.getDeviceCount": fails("cudaErrorSystemDriverMismatch: differs\nmore")},
        ["cannot use the GPU", "cudaErrorSystemDriverMismatch: differs", "nvidia-smi"],
    ),
    "a device that CUDA 13 does not know": (
        {
            "cuda.runtime.driverGetVersion": lambda: 13000,
            "cuda.runtime.runtimeGetVersion": lambda: 13000,
            "cuda.Device": lambda: types.SimpleNamespace(compute_capability="70"),
        },
        ["needs CUDA 12 for this GPU", "7.0", f"pip install {PINS[12]}"],
    ),
    "no NVRTC": (
        {"ones": fails(NVRTC)},
        ["first kernel", "libnvrtc.so.12", f"pip install {PINS[12]}"],
    ),
    "no NVRTC for CUDA 13": (
        {
            "ones": fails(NVRTC),
            "cuda.runtime.driverGetVersion": lambda: 13000,
            "cuda.runtime.runtimeGetVersion": lambda: 13000,
        },
        ["first kernel", "libnvrtc.so.12", f"pip install {PINS[13]}"],
    ),
    "no cuBLAS": (
        {"ndarray.__matmul__": fails(CUBLAS, ImportError)},
        ["first matrix product", "libcublasLt.so.12", f"pip install {PINS[12]}"],
    ),
    "a result that does not arrive": (
        {"ndarray.get": fails("cudaErrorNoKernelImageForDevice: no kernel image")},
        ["first matrix product", "cudaErrorNoKernelImageForDevice"],
    ),
    "a GPU that others have filled": (
        {"ones": fails(FULL, OutOfMemoryError)},
        ["first kernel", FULL, "memory is full", "nvidia-smi"],
    ),
    "a GPU that another holds alone": (
        {"ones": fails("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable")},
        ["first kernel", "cudaErrorDevicesUnavailable", "stop the other programs that use the GPU", "nvidia-smi"],
    ),
    "a cache of kernels that cannot be written": (
        {"ones": refuses_a_file},
        ["first kernel", "Permission denied: '/home/me/.cupy/tmp1'", "CUPY_CACHE_DIR must name a writable folder"],
    ),
    "a GPU that others have filled, as cuBLAS reports it": (
        {"ndarray.__matmul__": fails("CUBLAS_STATUS_ALLOC_FAILED")},
        ["first matrix product", "memory is full", "nvidia-smi"],
    ),
}


def break_it(cupy: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for path, value in changes.items():
        owner = cupy
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        monkeypatch.setattr(owner, name, value)


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_reported_in_one_line_with_its_remedy(
    case: str, cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, words = BROKEN[case]
    break_it(cupy, changes, monkeypatch)
    with pytest.raises(minidl.BackendError) as caught:
        minidl.Linear(3, 2, backend="cupy")
    message = str(caught.value)
    assert message.startswith("backend 'cupy' ") and "\n" not in message
    places = [message.find(word) for word in words]
    assert -1 not in places and places == sorted(places), f"{message!r} lacks some of {words}"
    with pytest.raises(minidl.BackendError):  # it is looked at again: nothing broken is remembered as usable
        minidl.to_backend(np.zeros(2), "cupy")


def test_a_healthy_cupy_is_looked_at_once(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.get("cupy") is cupy
    monkeypatch.setattr(cupy, "ones", fails("looked at twice"))
    assert backend.get("cupy") is cupy
    another = device_double.install(monkeypatch)
    assert backend.get("cupy") is another, "an answer is of one module only"


def test_hidden_devices_are_reported(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    with refuses(minidl.BackendError, "finds none", "unset CUDA_VISIBLE_DEVICES", "'-1'"):
        backend.get("cupy")


@pytest.fixture
def unlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No double, and nothing known."""
    monkeypatch.setattr(device, "_usable", None)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)


@pytest.mark.parametrize("layer", [minidl.Embedding, minidl.Linear, minidl.LSTM, minidl.LinearCrossEntropy])
def test_cupy_that_is_not_installed(layer: Any, unlooked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "packages", dict)
    monkeypatch.setitem(sys.modules, "cupy", None)  # import then raises ModuleNotFoundError
    with refuses(minidl.BackendError, "'cupy'", "not installed", f"pip install {PINS[13]}"):
        layer(3, 2, backend="cupy")


IMPORTS = {
    "raise OSError('libcudart.so.12: cannot open shared object file\\nsecond line')": "libcudart.so.12: cannot open",
    "raise RuntimeError": "(RuntimeError)",
    "import no_such_module_of_cupys": "no_such_module_of_cupys",
    # CuPy's own way: the reason is the cause of an ImportError with a page of advice
    "raise ImportError('====\\nadvice') from OSError('libfoo')": "(libfoo)",
}


@pytest.mark.parametrize("source", IMPORTS)
def test_cupy_whose_import_breaks(source: str, unlooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(device, "packages", dict)
    monkeypatch.syspath_prepend(tmp_path)
    with refuses(minidl.BackendError, "cannot be imported", IMPORTS[source], "remove it, then pip install"):
        backend.get("cupy")
    # to install the other package beside it would only break more
    monkeypatch.setattr(device, "packages", lambda: {"cupy-cuda12x": "14.2.0"})
    with refuses(minidl.BackendError, IMPORTS[source], "pip uninstall --yes cupy-cuda12x, then pip install"):
        backend.get("cupy")


def test_a_folder_for_compiled_kernels_that_cannot_be_made(
    unlooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy makes it as it is imported: in a container whose user has no home, nothing is wrong with the package."""
    (tmp_path / "home").touch()
    source = f"import os; os.makedirs({str(tmp_path / 'home' / '.cupy')!r})"
    (tmp_path / "cupy.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        minidl.BackendError, match=r"cannot be imported.*CUPY_CACHE_DIR must name a writable folder"
    ) as caught:
        backend.get("cupy")
    assert "pip" not in str(caught.value)


def test_a_folder_that_cupy_left_behind(unlooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy").mkdir()  # imports as an empty namespace package
    monkeypatch.setattr(device, "packages", dict)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with refuses(minidl.BackendError, "'cupy'", "folder", str(tmp_path / "cupy"), "delete"):
            backend.get("cupy")
        assert minidl.to_host(np.zeros(2)).shape == (2,)  # NumPy still works
    finally:
        sys.modules.pop("cupy", None)


def install_package(folder: Path, name: str) -> None:
    """As pip leaves one: what importlib.metadata reads."""
    info = folder / f"{name.replace('-', '_')}-14.2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 14.2.0\n", encoding="utf-8")


def test_two_packages_of_cupy_are_refused_before_they_are_imported(
    unlooked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        install_package(tmp_path, name)
    (tmp_path / "cupy.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}.items() <= device.packages().items()
    with refuses(minidl.BackendError, "overwrite", "pip uninstall --yes cupy-cuda12x cupy-cuda13x", "pip install"):
        backend.get("cupy")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (OutOfMemoryError(FULL), True),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), True),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cudaErrorIllegalAddress: an illegal memory access"), False),
        (ValueError("memory"), False),
    ],
)
def test_memory_that_ran_out_has_several_names(error: Exception, full: bool) -> None:
    assert backend.is_out_of_memory(error) is full


def test_the_report_says_what_there_is(cupy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main() == 0
    out, err = capsys.readouterr()
    assert err == ""
    for expected in (
        f"NumPy   {np.__version__} with ",
        f"threads {minidl.get_num_threads()}, of ",
        "CuPy    14.2.0 (cupy-cuda12x)",
        "CUDA    12.9; the driver supports up to 12.9",
        "device  0 of 1: a double of a GPU, compute capability 8.0, 3.0 of 4.0 GiB free",
        "check   a first kernel and matrix product are correct",
    ):
        assert expected in out
    assert "emulator" not in out


def test_the_report_does_not_call_the_emulator_a_gpu(cupy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cupy.cuda.runtime.getDeviceProperties = lambda _: {"name": device.EMULATOR.encode()}
    assert report.main() == 0
    assert "this is not a GPU" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["__mul__", "__matmul__"])
def test_the_report_finds_wrong_results(
    wrong: str, cupy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(cupy.ndarray, wrong)
    monkeypatch.setattr(cupy.ndarray, wrong, lambda *operands: right(*operands) + 1)
    assert report.main() == 1
    _, err = capsys.readouterr()
    assert "wrong results" in err and len(err.splitlines()) == 1


def test_the_report_is_a_program_that_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise OSError('libcudart')", encoding="utf-8")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['backend']; "
    program = path + "import runpy; runpy.run_module('minidl.backend', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("NumPy") and done.stdout.splitlines()[-1].startswith("CuPy ")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("minidl.backend: error: backend 'cupy' ")
    assert "libcudart" in done.stderr
