"""Set up before any test: the example's modules by name, and hypothesis without a clock or a database."""

import os
import sys
from pathlib import Path

from hypothesis import settings

# Tests multiply small matrices, where threads that wait for each other cost more than they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "poetry"))

settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("suite")
