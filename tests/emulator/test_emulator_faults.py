"""Each mode catches the faults it is for, NVRTC rejects invalid CUDA, and what cannot be emulated is refused."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import Any

import emulator
import pytest

pytestmark = pytest.mark.cupy
COUNTED = [float(i) for i in range(8)]
SHIFTED = [0.0, *COUNTED[:-1]]

# name: (the result in plain mode, the mode that reveals the fault)
SEEN: dict[str, tuple[list[float], str]] = {
    "threads_that_read_what_others_write": (COUNTED, "reversed"),
    "blocks_that_read_what_others_write": (COUNTED, "reversed"),
    "a_missing_barrier": (SHIFTED, "reversed"),
    "a_result_that_is_read_too_early": (COUNTED, "deferred"),
    "a_source_that_changes_before_it_was_copied": (COUNTED, "deferred"),
    "memory_that_was_never_written": (COUNTED, "guarded"),
}
# name: (the result in plain mode, the mode in which the program dies, its message)
DEADLY: dict[str, tuple[list[float], str, str]] = {
    "a_read_past_the_end": (COUNTED, "guarded", "out of bounds in the kernel copy"),
    "a_write_past_the_end": ([1.0] * 7, "guarded", "something was written past the end of a block of 28 bytes"),
}


def run(name: str, mode: str) -> subprocess.CompletedProcess[str]:
    return emulator.run(Path(__file__).with_name("faults.py"), name, mode=mode)


def numbers(name: str, mode: str) -> Any:
    done = run(name, mode)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.replace("nan", "None"))


@pytest.mark.parametrize("name", SEEN)
def test_a_fault_changes_the_result_in_the_mode_that_is_for_it(name: str) -> None:
    unnoticed, mode = SEEN[name]
    assert numbers(name, "plain") == unnoticed
    assert numbers(name, mode) != unnoticed


@pytest.mark.parametrize("name", DEADLY)
def test_a_fault_ends_the_program_in_the_mode_that_is_for_it(name: str) -> None:
    unnoticed, mode, message = DEADLY[name]
    assert numbers(name, "plain") == unnoticed
    done = run(name, mode)
    assert done.returncode < 0 and message in done.stderr, done


@pytest.mark.parametrize("mode", ["plain", "reversed", "deferred", "guarded"])
def test_what_is_right_is_right_in_every_mode(mode: str) -> None:
    assert numbers("no_fault", mode) == SHIFTED


def test_a_barrier_that_some_threads_never_reach_ends_the_program() -> None:
    done = run("a_barrier_that_some_threads_never_reach", "plain")
    assert done.returncode < 0 and "never reach" in done.stderr, done


COMPILE = """
import os, sys
from pathlib import Path
import cupy, compile_kernel
source = '''extern "C" __global__ void k(float* x) { x[0] = %s; }'''
include = Path(cupy.__file__).parent / "_core" / "include"
compile_kernel.shared_library(source, include, Path(os.environ["MINIDL_EMULATOR"]))
print("g++ takes it")
try:
    cupy.RawKernel(source, "k").compile()
except cupy.cuda.compiler.CompileException as error:
    print("NVRTC refuses it:", error)
"""


@pytest.mark.parametrize("expression", ["INFINITY", "std::exp(x[1])"])
def test_nvrtc_refuses_what_the_cpus_compiler_takes(expression: str) -> None:
    done = emulator.run("-c", COMPILE % expression)
    assert "g++ takes it\nNVRTC refuses it:" in done.stdout, done


REFUSED = {
    "a sort": "cupy.sort(cupy.arange(9.0)[::-1])",
    "CuPy's own random numbers": "cupy.random.default_rng(0)",
    "complex numbers": "cupy.ones(3, 'F') * 2j",
    "half precision": "cupy.ones((3, 3), 'e') @ cupy.ones((3, 3), 'e')",
    "a template": "cupy.RawModule(code='template <class T> __global__ void k(T* x) {}',"
    " name_expressions=('k<int>',)).get_function('k<int>')",
    "a host pointer": "cupy.asarray(np.zeros(4)).data.copy_from_device(np.zeros(4).ctypes.data, 8)",
}


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_emulated_is_an_error_and_no_garbage(code: str) -> None:
    done = emulator.run("-c", f"import cupy, numpy as np\nprint('imported')\n{code}\nprint('done')")
    assert done.stdout == "imported\n" and done.returncode != 0, done


def test_it_does_not_pass_for_a_gpu() -> None:
    done = emulator.run("-c", "import cupy; print(cupy.cuda.runtime.getDeviceProperties(0)['name'].decode())")
    assert done.stdout == "CPU emulator (not a GPU)\n", done


def test_it_is_the_real_cupy_and_the_users_environment_has_none_of_it() -> None:
    code = "import cupy; print(cupy.__version__, cupy.__file__)"
    version, file = emulator.run("-c", code).stdout.split()
    assert version == "14.2.0"
    assert Path(file).is_relative_to(Path(emulator.python()).parents[1])
