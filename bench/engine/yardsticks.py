"""What the engine is compared with: transformers' `generate`, and what memory allows a step."""

import time
from collections.abc import Sequence
from typing import Any

from bench.stats import Timeline

_COPY_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}  # far beyond every cache
_COPY_SECONDS = 0.5  # of copies


def weight_bytes(model: Any) -> int:
    """Of the weights that a step reads: of input embeddings, unless tied, only a row each."""
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and table.weight is not output.weight:
        size -= table.weight.numel() * table.weight.element_size()
    return size


def kv_bytes(config: Any, itemsize: int, context: float) -> float:
    """Of the keys and values of a row of `context` tokens, `itemsize` bytes a number."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None) or context
    if getattr(config, "use_sliding_window", True) is False:  # Qwen names one it does not use
        window = context
    tokens = 0.0
    for kind in getattr(config, "layer_types", None) or ["sliding"] * config.num_hidden_layers:
        if kind == "full_attention":
            tokens += context
        else:
            tokens += min(context, window)
    return tokens * 2 * heads * size * itemsize


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy within the device, read and written, their median."""
    import torch.utils.benchmark

    place = torch.device(device)
    size = _COPY_BYTES[place.type]
    if place.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(place)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=place)
    if place.type == "cuda":
        torch.cuda.set_device(source.device)  # the timer waits for this one
    target = torch.empty_like(source)
    target.copy_(source)  # the first touches the pages
    words, threads = {"source": source, "target": target}, torch.get_num_threads()
    timer = torch.utils.benchmark.Timer("target.copy_(source)", globals=words, num_threads=threads)
    return 2 * size / timer.blocked_autorange(min_run_time=_COPY_SECONDS).median


def generate(
    model: Any, prompts: Sequence[Sequence[int]], answer: int, seconds: float
) -> list[Timeline]:
    """Greedy answers to prompts of one length, one batch, cut short after about `seconds`."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()  # no end token, it warns: as intended
    ids = torch.tensor(prompts, device=model.device)
    config = transformers.GenerationConfig(
        max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0, max_time=seconds
    )
    began = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(ids, config, attention_mask=torch.ones_like(ids))
        output.tolist()  # waits for the device
    ended, tokens = time.perf_counter(), output.shape[1] - ids.shape[1]
    return [Timeline(began, times=[ended], counts=[tokens]) for _ in prompts]
