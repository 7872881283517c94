"""Models with random weights, written to a folder once: a node loads nothing else."""

import os
import shutil
import tempfile
from pathlib import Path

from bench.engine import shapes
from bench.report import say
from worker import models


def prepared(shape: str, device: str) -> Path:
    """The folder of that shape below CANOPY_HOME, made when it is missing: bfloat16, or float32 for a CPU.

    It is complete or not there: what is half written has another name.
    """
    import torch

    folder = models.home() / "bench" / "models" / shape
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"writing {shape} with random weights to {folder}")
    unfinished = Path(tempfile.mkdtemp(prefix=f".{shape}-", dir=folder.parent))
    try:
        config = shapes.config(shape)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        shapes.build(config, "cpu", dtype).save_pretrained(unfinished)
        shapes.tokenizer(config.vocab_size).save_pretrained(unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
