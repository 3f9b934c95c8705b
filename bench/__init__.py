"""Layerbench: its commands, one file each, and the rooms that they stand on, one folder each."""

import importlib
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent  # the repository

# What lies beside this folder, and not what the folder that one is in, or PYTHONPATH, has by these names: a project
# whose kernels are brought here (bench.import) may well have a folder `kernels`.
sys.path.insert(0, str(HOME))
for _beside in ("kernels", "reference"):
    importlib.import_module(_beside)
sys.path.remove(str(HOME))
