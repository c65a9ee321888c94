"""Compiles every minidl kernel with NVRTC for each GPU architecture; prints JSON: {kernel: {architecture: answer}}.

An answer is {"registers": ..., "spilled": ... bytes} or {"error": NVRTC's message}. Run it on the emulator, for its
NVRTC; nothing is launched.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from cupy.cuda import compiler

ARCHITECTURES = ["sm_70", "sm_80", "sm_90", "sm_100"]  # V100, A100, H100, B200
REFUSED = {"an error": 'extern "C" __global__ void k(float* x) { x[0] = INFINITY; }'}


def answer(source: str, architecture: str) -> dict[str, Any]:
    log = io.StringIO()
    options = (f"-arch={architecture}", "--device-as-default-execution-space", "--ptxas-options=-v")
    try:
        code, _ = compiler._NVRTCProgram(source, "k.cu", method="cubin").compile(options, log)
    except compiler.CompileException as error:
        return {"error": str(error)}
    assert code.startswith(b"\x7fELF")
    text = log.getvalue()
    registers, spilled = re.findall(r"Used (\d+) registers", text), re.findall(r"(\d+) bytes spill", text)
    return {"registers": max(map(int, registers)), "spilled": sum(map(int, spilled))}


if __name__ == "__main__":
    if sys.argv[1:] == ["--refused"]:
        sources = REFUSED
    else:
        import minidl.kernels.cuda as kernels

        sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
        from device_kernels import optimizers_rules

        sources = kernels.sources(*optimizers_rules())
    found = {name: {each: answer(source, each) for each in ARCHITECTURES} for name, source in sources.items()}
    print(json.dumps(found, indent=1))
