"""Counts GPUs without torch, which takes seconds to import. Standard library only."""

import os
from collections.abc import Mapping
from pathlib import Path


def count(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """The NVIDIA GPUs that this process may use; CUDA_VISIBLE_DEVICES limits them."""
    installed = _installed(root)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    return min(installed, _listed(visible))


def _installed(root: Path) -> int:
    """A container may see all GPUs of the driver but the device files of some; on other machines
    the files appear with first use.
    """
    folders = (root / "proc/driver/nvidia/gpus").glob("*")
    drivers = sum(folder.is_dir() for folder in folders)
    files = len(list((root / "dev").glob("nvidia[0-9]*")))
    if drivers and files:
        return min(drivers, files)
    return drivers or files


def _listed(visible: str) -> int:
    """The entries before the first invalid one, where CUDA stops reading too."""
    count = 0
    for entry in visible.split(","):
        name = entry.strip()
        if not name or name.startswith("-"):
            break
        count += 1
    return count
