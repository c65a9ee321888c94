"""Imported before any package that may be missing: reports in one line which are, and how to install them."""

import importlib.util
import sys
from pathlib import Path

NEEDED = ("numpy", "safetensors", "minidl", "matplotlib", "opencc", "platformdirs", "charset_normalizer", "tqdm")

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    sys.stderr.write(
        f"{Path(sys.argv[0]).name}: error: {', '.join(missing)} not installed in this Python ({sys.executable}); "
        "in the repository's folder: pip install -e '.[poetry]'\n"
    )
    sys.exit(2)
