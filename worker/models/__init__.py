"""Where models are on this machine."""

import os
from pathlib import Path

DEFAULT = "smollm2-135m-instruct"
GEMMA = "gemma-3-270m"
PACKAGED = (DEFAULT, GEMMA)  # their weights come as Python packages


def home() -> Path:
    """The state folder: CANOPY_HOME, or `var` in the repository."""
    return Path(os.environ.get("CANOPY_HOME") or Path(__file__).parents[2] / "var").absolute()


def is_local(name_or_path: str) -> bool:
    """True for a folder, false for a model's name."""
    if name_or_path in PACKAGED:
        return False
    return name_or_path.startswith(("/", "./", "../", "~")) or Path(name_or_path).is_dir()


def installed(name_or_path: str, at: Path | None = None) -> Path:
    """The folder to load, whether it exists or not. `at`: the state folder, if not the usual."""
    if is_local(name_or_path):
        return Path(name_or_path).expanduser().absolute()
    return (at or home()) / "models" / name_or_path.replace("/", "--")
