"""What the engine is compared with: transformers' `generate`, and what memory allows a step."""

import gc
import time
from typing import Any

from bench.engine import reading
from bench.engine.load import UNIFORM
from bench.engine.measure import Record, Settings
from bench.engine.prompts import Prompts, Request
from bench.engine.reading import GENERATE, LIMIT, Reading
from bench.stats import Timeline

_COPY_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}  # far beyond every cache
_WARM_TOKENS = 16
_GENERATE_SECONDS = 30.0  # after which what it has made counts
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


def measure_limit(model: Any, it: Settings, record: Record) -> None:
    """A decoding step by the speed of the memory."""
    speed = bandwidth(it.device)
    weights = weight_bytes(model)
    record.note(f"limit: {weights / 1e9:.3f} GB of weights, copies {speed / 1e9:.0f} GB/s")
    config, context = model.config.get_text_config(), it.tokens.prompt + it.tokens.answer / 2
    row = kv_bytes(config, model.dtype.itemsize, context)
    for size in it.sizes(UNIFORM):
        step = 1000 * (weights + size * row) / speed
        record.add(UNIFORM, size, LIMIT, Reading(step_ms=step))


def measure_generate(model: Any, prompts: Prompts, it: Settings, record: Record) -> None:
    """The uniform load on transformers' own `generate`: one batch of greedy answers."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()  # no end token, it warns: as intended
    no_end = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    request = Request(it.tokens.prompt, it.tokens.answer)
    for size in it.sizes(UNIFORM):
        with record.row(f"{GENERATE}, {size} at once"), torch.inference_mode():
            batch = [prompt.ids for prompt in prompts.make([request] * size)]
            ids = torch.tensor(batch, device=model.device)
            for tokens in (_WARM_TOKENS, request.answer):
                config = transformers.GenerationConfig(
                    max_new_tokens=tokens, max_time=_GENERATE_SECONDS, **no_end
                )
                began = time.perf_counter()
                output = model.generate(ids, config, attention_mask=torch.ones_like(ids))
                output.tolist()  # waits for the device
                ended = time.perf_counter()
            made = output.shape[1] - request.prompt
            if made < request.answer:
                record.note(f"{GENERATE}, {size} at once: cut short after {made} tokens each")
            answers = [Timeline(began, times=[ended], counts=[made])] * size
            record.add(UNIFORM, size, GENERATE, reading.read(answers))
        gc.collect()
        if it.device != "cpu":
            torch.cuda.empty_cache()
