"""Processes killed while they save: the last checkpoint is intact.

20 kills, or 400 with MINIDL_THOROUGH=1 in the environment; the outcomes are printed (pytest -m slow -s).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_helpers import THOROUGH
from helpers import python

import minidl


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20 if THOROUGH else 1))
def test_the_last_checkpoint_survives_a_kill_at_any_instant(seed: int, tmp_path: Path) -> None:
    """What was reported as saved can be loaded, or the one after it; and no unfinished files pile up."""
    path = tmp_path / "c"
    found = json.loads(
        python(f"""
            import json, pathlib
            from checkpoint_kills import kill_savers
            print(json.dumps(kill_savers(pathlib.Path({str(path)!r}), kills=20, seed={seed})))
        """)
    )
    print(found)
    assert found["kills"] == 20 and found["lost"] == 0
    assert found["unfinished"] > 0, "no kill landed inside a save"
    minidl.save(path, {}, {})
    assert list(tmp_path.iterdir()) == [path]
