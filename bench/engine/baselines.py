"""What transformers does by itself with the same model: `generate`, and continuous batching.

Each gives timelines as the engine's loads do. None takes much longer than its `cap` in seconds:
what it had made until then counts.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.engine.load import Ask
from bench.errors import BenchError
from bench.timeline import Timeline

_WARM_TOKENS = 4
_POLL = 0.2  # seconds without a result until the clock is looked at
_STOP_SECONDS = 20.0
_PAGE = 256  # tokens, the default of continuous batching
_CPU_BATCH_TOKENS = 1024

Prompt = list[int]


class BaselineFailed(BenchError):
    """It made nothing; the text says why."""


def one_by_one(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], concurrency: int, cap: float
) -> list[Timeline]:
    return static(model, asks, prompts, 1, cap)


def static(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], concurrency: int, cap: float
) -> list[Timeline]:
    """`model.generate` in padded batches, each until its longest answer is made.

    Of a shorter answer only what was asked for counts.
    """
    _generate(model, prompts[:concurrency], _WARM_TOKENS, cap)
    timelines: list[Timeline] = []
    deadline = time.perf_counter() + cap
    for first in range(0, len(asks), concurrency):
        began = time.perf_counter()
        if began >= deadline:
            break
        batch = asks[first : first + concurrency]
        longest = max(ask.answer for ask in batch)
        ids = prompts[first : first + concurrency]
        times = _generate(model, ids, longest, deadline - began)
        for ask in batch:
            made = times[: ask.answer]
            timelines.append(Timeline(began, times=made, counts=[1] * len(made)))
    return timelines


def _generate(model: Any, prompts: Sequence[Prompt], answer: int, seconds: float) -> list[float]:
    """One greedy `generate`, padded on the left: when each step had ended."""
    import torch
    import transformers

    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = list(zip(padding, prompts, strict=True))
    ids = torch.tensor([[0] * pad + prompt for pad, prompt in rows], device=model.device)
    masks = [[0] * pad + [1] * len(prompt) for pad, prompt in rows]
    clock = _Clock()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.tensor(masks, device=model.device),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=answer,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
                max_time=seconds,
            ),
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        output.tolist()  # waits for the device
    times = [*clock.times[:-1], time.perf_counter()]
    return times[: output.shape[1] - longest]


class _Clock:
    """`generate` calls it after each step, and waits for the device once a step itself."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def continuous(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], concurrency: int, cap: float
) -> list[Timeline]:
    """transformers' continuous batching as it comes, warmed up. Raises BaselineFailed."""
    manager = _manager(model, asks, concurrency)
    outputs: dict[str, Any] = {}  # the newest by request
    try:
        manager.warmup()
        manager.start()
        manager.add_request(prompts[0], request_id="warm", max_new_tokens=_WARM_TOKENS)
        _collect(manager, outputs, ["warm"], time.perf_counter() + cap)
        names = [str(number) for number in range(len(asks))]
        for name, ask, ids in zip(names, asks, prompts, strict=True):
            manager.add_request(
                ids,
                request_id=name,
                max_new_tokens=ask.answer,
                record_timestamps=True,
                eos_token_id=-1,
            )
        _collect(manager, outputs, names, time.perf_counter() + cap)
        manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
        queue = manager.output_router.output_queue
        for _ in range(queue.qsize()):
            output = queue.get_nowait()
            outputs[output.request_id] = output
    finally:
        with contextlib.suppress(RuntimeError):
            if manager.is_running():
                manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
            manager.destroy()
    timelines = []
    for name in names:
        output = outputs.get(name)
        if output is not None and output.timestamps:
            # In a closed loop a request begins when it gets a slot, not when it was queued.
            queued = len(asks) > concurrency and output.lifespan[0] > 0
            began = output.lifespan[0] if queued else output.created_time
            times = list(output.timestamps)
            timelines.append(Timeline(began, times=times, counts=[1] * len(times)))
    if not timelines:
        errors = sorted({str(output.error) for output in outputs.values() if output.error})
        raise BaselineFailed("; ".join([f"no token within {cap:.0f} s", *errors]))
    return timelines


def _manager(model: Any, asks: Sequence[Ask], concurrency: int) -> Any:
    import transformers
    from transformers.generation.continuous_batching.utils import WorkloadHints

    sizes = {}
    if model.device.type != "cuda":
        # By default its cache takes nearly all memory, which on a CPU others need, too.
        blocks = 2 + max(ask.prompt + ask.answer for ask in asks) // _PAGE
        sizes = {
            "page_size": _PAGE,
            "num_blocks": (concurrency + 1) * blocks,
            "max_batch_tokens": _CPU_BATCH_TOKENS,
        }
    return model.init_continuous_batching(
        generation_config=transformers.GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=transformers.ContinuousBatchingConfig(
            max_requests_per_batch=concurrency, default_compile_level=0, **sizes
        ),
        workload_hints=WorkloadHints(
            max_prompt_length=max(ask.prompt for ask in asks),
            max_generated_length=max(ask.answer for ask in asks),
            num_requests=concurrency,
        ),
    )


def _collect(manager: Any, outputs: dict[str, Any], names: Sequence[str], deadline: float) -> None:
    """Reads results until all of those requests have ended, or the time is up."""
    waiting = set(names)
    while waiting and time.perf_counter() < deadline and manager.is_running():
        output = manager.get_result(timeout=_POLL)
        if output is not None:
            outputs[output.request_id] = output
            if output.is_finished():
                waiting.discard(output.request_id)


Baseline = Callable[[Any, Sequence[Ask], Sequence[Prompt], int, float], list[Timeline]]
GENERATE, STATIC = "generate", "static"
BASELINES: dict[str, Baseline] = {
    GENERATE: one_by_one,
    STATIC: static,
    "continuous": continuous,
}
