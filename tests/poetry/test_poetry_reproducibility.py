"""The same seed and number of threads give the same bits in another process, whatever Python's hashes are.

That another number of threads or another machine may round differently is no promise, so it is not tested:
docs/reproducibility.md tells what was measured.
"""

from __future__ import annotations

import pytest
from helpers import python

CHILD = """
    import hashlib, sys
    sys.path.append({examples!r})
    import numpy as np
    from model import PoemModel
    from poetry_helpers import VOCABULARY, pseudo_poems
    from small_model import cut_for
    from corpus.tasks import packed_task
    from learning.training import build_optimizer
    from poetry_helpers import fit
    from minidl import Constant
    from minidl.kernels.cpu import threads

    def weights(seed):
        poems = pseudo_poems(60)
        poems = [poem[:3 + n % 8] for n, poem in enumerate(poems)]
        task = packed_task([poems[:40], poems[40:50], poems[50:]], VOCABULARY, 8)
        rng = np.random.default_rng(seed)
        model = PoemModel(len(VOCABULARY), 6, 8, 0.2, rng=rng)
        schedule = Constant(build_optimizer("adam", model.parameters(), 0.01))
        for _ in fit(model, schedule, task, epochs=2, patience=2, clip=1.0, quiet=True, rng=rng):
            pass
        return hashlib.sha256(b"".join(p.data.tobytes() for p in model.parameters())).hexdigest()

    cuts, run = set(), threads.run
    def watched(tasks, parts=None):
        cuts.add(min(len(tasks), parts or len(tasks)))
        return run(tasks, parts)
    threads.run = watched
    with cut_for({n}):
        print(weights(5), weights(6), max(cuts) >= {n})
"""


@pytest.mark.parametrize("n", [1, 2])
def test_two_processes_train_to_the_same_bits(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small poem model with dropout and shuffled batches, its work cut for n threads however small it is."""
    from poetry_helpers import PROGRAMS

    found = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        found.append(python(CHILD.format(examples=str(PROGRAMS), n=n)).split())
    first, other, really_cut = found[0]
    assert found[0] == found[1]
    assert first != other, "the seed decides"
    assert really_cut == "True"
