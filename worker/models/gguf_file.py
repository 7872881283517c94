"""Converts a GGUF file to a folder with safetensors and a tokenizer.

Loading the file takes most of a minute, loading the converted folder a few seconds.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.models.progress import Say


def convert(file: Path, folder: Path, say: Say) -> None:
    """Unpacks the quantized weights of `file` to bfloat16 in `folder`, with the tokenizer,
    the chat template and the ids of the end tokens that the file names.
    """
    # tqdm reads this when it is imported; `say` reports the progress
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with _parsing_once():
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
