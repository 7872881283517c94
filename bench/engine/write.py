"""`python -m bench.engine.write SHAPE FOLDER`: a model with random weights as a folder.

For what must read one, such as processes that divide a model. On /dev/shm reading is quick.
"""

from pathlib import Path
from typing import Annotated

import typer

from bench.engine import shapes
from bench.engine.subject import find_device


def write(shape: str, folder: Path, device: str) -> None:
    """In bfloat16, as most models are published; drawn on `device`. Raises OSError."""
    import torch

    config = shapes.config(shape)
    shapes.build(config, device, torch.bfloat16).save_pretrained(folder)
    shapes.tokenizer(config.vocab_size).save_pretrained(folder)


def command(
    shape: Annotated[str, typer.Argument(help=f"{', '.join(shapes.SHAPES)}.")],
    folder: Annotated[Path, typer.Argument(help="Where to; new or empty.")],
    device: Annotated[str, typer.Option(help="Where the numbers are drawn.")] = "auto",
) -> None:
    """Write a model of a known shape, with random weights, as safetensors with its tokenizer."""
    if shape not in shapes.SHAPES:
        message = f"{shape!r} is none of {', '.join(shapes.SHAPES)}"
        raise typer.BadParameter(message, param_hint="SHAPE")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"{folder} is not an empty folder", param_hint="FOLDER")
    write(shape, folder, find_device(device))


if __name__ == "__main__":
    typer.run(command)
