"""train.py as an MPI rank, with an injected fault: python rank_program.py WHAT RANK STEP ARGUMENTS...

WHAT happens on rank RANK once the optimizer has taken STEP steps: nothing, kill, error (one that the program expects),
mute (the same, with no reader on stderr), unread (the reader of the output is gone) or bug (an unexpected error).
"early" is an error right after MPI has started, "astray" changes to another folder, and "device" trains on the double
of CuPy. Nothing is drawn.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "poetry" / "train.py"


def main() -> None:
    what, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv = [str(PROGRAM), *sys.argv[4:]]
    sys.path.insert(0, str(PROGRAM.parent))
    from common import figures
    from learning import ranks

    from minidl import optimizers

    figures.draw_curves = figures.draw_poems = lambda *arguments: None
    after = optimizers.Optimizer.step

    def stepped(self: optimizers.Optimizer) -> None:
        after(self)
        if self.steps == step and ranks.current.rank == rank:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "mute":
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, 2)
            if what in ("error", "mute"):
                raise OSError(f"the disk of rank {rank} is gone")
            if what == "unread":
                raise BrokenPipeError
            if what == "bug":
                raise AssertionError(f"a fault of rank {rank}")

    def early(self: ranks.Distributed) -> None:
        if self.rank == rank and what == "astray":
            os.chdir("astray")
        elif self.rank == rank:
            raise OSError(f"rank {rank} has no cores")

    optimizers.Optimizer.step = stepped  # type: ignore[method-assign]
    if what in ("early", "astray"):
        ranks.Distributed._share_cores = early  # type: ignore[method-assign]
    if what == "device":
        import device_double

        with pytest.MonkeyPatch.context() as patch:
            device_double.install(patch)
            runpy.run_path(str(PROGRAM), run_name="__main__")
    runpy.run_path(str(PROGRAM), run_name="__main__")


main()
