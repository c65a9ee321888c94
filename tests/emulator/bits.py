"""Trains a model of all layers with each optimizer on the emulator, and prints a hash of the results."""

from __future__ import annotations

import hashlib
import json
import sys

from emulator_build import ROOT

sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "gpu")]

from test_gpu_training import OPTIMIZERS, TOKENS  # noqa: E402
from twins import Model, batch  # noqa: E402

import minidl  # noqa: E402


def trained(name: str) -> str:
    model = Model(TOKENS, 6, 9, backend="cupy", rng=0)
    optimizer = OPTIMIZERS[name](model.parameters())
    for step in range(4):
        optimizer.zero_grad()
        ids, sizes, targets = batch(TOKENS, seed=step, sequences=60)  # each id many times
        loss = model.forward_backward(minidl.to_backend(ids, "cupy") if step % 2 else ids, sizes, targets, step)
        minidl.clip_grad_norm(optimizer.params, 0.5)
        optimizer.step()
    arrays = [minidl.to_host(loss), *model.state_dict().values()]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


if __name__ == "__main__":
    print(json.dumps({name: trained(name) for name in OPTIMIZERS}))
