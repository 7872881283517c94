"""How many GPUs there are, without torch: it takes seconds to import, and `doctor` must work where it is not installed.
Standard library only.
"""

import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path


def count(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """NVIDIA's GPUs that this process may use. torch numbers them from 0, whichever CUDA_VISIBLE_DEVICES names."""
    there = _installed(root)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, _named(visible))


def _installed(root: Path) -> int:
    """A container may see all of the driver's GPUs and have the files of some; elsewhere the files may come late."""
    drivers = len([each for each in (root / "proc/driver/nvidia/gpus").glob("*") if each.is_dir()])
    files = len(list((root / "dev").glob("nvidia[0-9]*")))
    return min(drivers, files) if drivers and files else drivers or files


def _named(visible: str) -> int:
    """Entries before the first that is none: CUDA stops reading there, too."""
    names = (name.strip() for name in visible.split(","))
    return len(list(takewhile(lambda name: name and not name.startswith("-"), names)))
