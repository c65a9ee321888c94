"""Builds the emulator: an environment with the real CuPy, and libraries that replace the driver and cuBLAS.

Both are kept in a cache folder and rebuilt when their inputs change; see README.md.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

CUPY = "14.2.0"
PACKAGES = [
    f"cupy-cuda12x=={CUPY}",
    "nvidia-cuda-nvrtc-cu12==12.9.*",  # the last series that supports sm_70
    "nvidia-cuda-runtime-cu12==12.9.*",  # headers
    "nvidia-cuda-nvcc-cu12==12.9.*",  # more headers, and ptxas
    "cython==3.2.4",  # the version that CuPy was built with
    "setuptools>=77",
    "wheel",
    "hypothesis>=6.100",
    "pytest>=8",
]


class Unavailable(RuntimeError):
    """The emulator is not available here; the message says why."""


def cache_folder() -> Path:
    """$MINIDL_EMULATOR_CACHE, or a folder in the user's cache folder."""
    chosen = os.environ.get("MINIDL_EMULATOR_CACHE")
    if chosen:
        return Path(chosen).resolve()
    import platformdirs

    return Path(platformdirs.user_cache_path("minidl")) / "emulator"


def environment_folder() -> Path:
    """A separate environment with CuPy, NVRTC and everything that minidl and its programs need."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise Unavailable("the emulator runs only on Linux on x86-64")
    if shutil.which("g++") is None:
        raise Unavailable("the emulator needs g++")
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = f"{settings['options']['install_requires']}\n{settings['options.extras_require']['poetry']}"
    packages = [*PACKAGES, *filter(None, map(str.strip, lines.splitlines()))]
    return _made("environment", [sys.version, *packages], lambda folder: _make_environment(folder, packages))


def driver_folder(environment: Path) -> Path:
    """A folder with lib/ and ext/, compiled from driver/; device/; and kernels/, the kernels compiled so far."""
    sources = sorted(path for folder in ("driver", "device") for path in (HERE / folder).rglob("*.*"))
    parts = [environment.name, Path(__file__).read_text(encoding="utf-8"), _run("g++", "--version")]
    for path in [*sources, HERE / "start" / "compile_kernel.py"]:
        parts += [str(path.relative_to(HERE)), path.read_text(encoding="utf-8")]
    return _made("driver", parts, lambda folder: _make_driver(folder, environment))


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def _made(name: str, made_of: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The folder `name`-<hash of its inputs>; complete if it exists, even if several processes build it at once."""
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / name
        make(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def _make_environment(folder: Path, packages: Sequence[str]) -> None:
    _run(sys.executable, "-m", "venv", folder)
    _pip(folder, "install", *packages)


def _make_driver(folder: Path, environment: Path) -> None:
    for name in ("lib", "ext", "kernels", "work"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(HERE / "device", folder / "device")
    work, lib = folder / "work", folder / "lib"
    packages = Path(_python(environment, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    headers = [f"-I{packages / 'nvidia' / name / 'include'}" for name in ("cuda_runtime", "cuda_nvcc")]

    # the driver, with the CUDA runtime functions that CuPy calls
    sources = [HERE / "driver" / f"{name}.cpp" for name in ("work", "memory", "device", "kernels", "threads")]
    driver = lib / "libcuda.so.1"
    _compile(driver, *sources, *headers, "-Wl,-soname,libcuda.so.1", "-ldl")

    # cuBLAS; CuPy asks for versioned symbols. cublasLt is loaded with it but never called.
    products, versions = work / "blas.o", work / "versions"
    versions.write_text("libcublas.so.12 { global: cublas*; };\n", encoding="utf-8")
    _compile(products, HERE / "driver" / "blas.cpp", "-c")
    called = _symbols(*packages.glob("cupy_backends/cuda/libs/cublas*.so"), pattern=r" U (cublas\w+)")
    refusals = _refusals(work / "refused_blas.cpp", called - _symbols(products, pattern=r" T (cublas\w+)"), 15)
    _compile(
        *(lib / "libcublas.so.12", products, refusals, driver),
        *("-Wl,-soname,libcublas.so.12", f"-Wl,--version-script={versions}"),
    )
    _compile(lib / "libcublasLt.so.12", "-x", "c++", os.devnull, "-Wl,-soname,libcublasLt.so.12")

    # the one CuPy extension that contains the CUDA runtime, rebuilt from CuPy's own source without it
    source = _runtime_source(work, environment)
    include = _python(environment, "import sysconfig; print(sysconfig.get_path('include'))")
    suffix = _python(environment, "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    profiler = 'extern "C" int cudaProfilerStart(), cudaProfilerStop();\n'  # the only header that no package provides
    (work / "cuda_profiler_api.h").write_text(profiler, encoding="utf-8")
    runtime = work / "runtime.o"
    _compile(runtime, source, "-c", "-O0", f"-I{include}", *headers, f"-I{source.parent}", f"-I{work}")
    called = _symbols(runtime, pattern=r" U (cu\w+)")
    refusals = _refusals(work / "refused.cpp", called - _symbols(driver, pattern=r" T (cu\w+)"), 801)
    _compile(folder / "ext" / f"runtime{suffix}", runtime, refusals, driver)
    shutil.rmtree(work)


def _runtime_source(work: Path, environment: Path) -> Path:
    """runtime.cpp, generated by Cython from CuPy's source package, next to the headers it includes."""
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", work]
    _pip(environment, "download", *options, f"cupy=={CUPY}")
    _run("tar", "-xzf", work / f"cupy-{CUPY}.tar.gz", "-C", work)
    source = work / f"cupy-{CUPY}"
    # the options of CuPy's own setup.py, for CUDA 12
    settings = "CUPY_CUDA_VERSION=12090,CUPY_HIP_VERSION=0,CUPY_USE_CUDA_PYTHON=0,CUPY_CUFFT_STATIC=0"
    directives = ["embedsignature=True", "c_api_binop_methods=True", "binding=False", "freethreading_compatible=True"]
    options = [part for directive in directives for part in ("-X", directive)]
    module = source / "cupy_backends" / "cuda" / "api" / "runtime.pyx"
    options += ["--cplus", "-3", "-E", settings, "-I", "."]
    _run(python_of(environment), "-m", "cython", *options, module, cwd=source)
    return module.with_suffix(".cpp")


def _symbols(*files: Path, pattern: str) -> set[str]:
    """Names in the files' symbol tables: " U name" is called, " T name" is defined."""
    dynamic = ["-D"] if files[0].suffix != ".o" else []
    return set(re.findall(pattern, _run("nm", *dynamic, *files)))


def _refusals(file: Path, names: Iterable[str], error: int) -> Path:
    """A source file in which each of these functions reports that it is not emulated and returns `error`."""
    lines = ["#include <cstdio>"]
    for name in sorted(names):
        text = f'fprintf(stderr, "emulator: {name} is not emulated\\n")'
        lines.append(f'extern "C" int {name}() {{ {text}; return {error}; }}')
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _compile(output: Path, *arguments: object) -> None:
    kind = [] if "-c" in arguments else ["-shared"]
    # with fortification, longjmp would refuse to switch stacks
    _run("g++", "-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-w", "-fPIC", *kind, "-o", output, *arguments)


def _python(environment: Path, code: str) -> str:
    return _run(python_of(environment), "-c", code).strip()


def _pip(environment: Path, command: str, *arguments: object) -> None:
    # without READTHEDOCS, CuPy's source package looks for a CUDA toolkit even to report its name and version
    settings = os.environ | {"READTHEDOCS": "True", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        _run(python_of(environment), "-m", "pip", command, "--quiet", *arguments, env=settings)
    except RuntimeError as error:
        raise Unavailable(f"the emulator's packages cannot be installed: {error}") from error


def _run(*command: object, **options: object) -> str:
    """The standard output of `command`; RuntimeError with the last lines of its error output if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", errors="replace", **options)  # type: ignore[call-overload]
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise RuntimeError(f"{' '.join(words[:6])} ... failed: {' / '.join(lines)}")
    return str(done.stdout)
