"""What transformers does by itself with the same model object: `generate`, and its own continuous batching.

Each gives tracks as the engine's loads do. None takes much longer than its `cap` in seconds: what it made until then
counts.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.engine.reading import Ask, Track

Prompt = list[int]
_WARM_TOKENS = 4
_POLL = 0.5  # seconds without a result until the clock is looked at
_STOP_SECONDS = 20.0


class BaselineFailed(Exception):
    """It made nothing; the text is why."""


def one_by_one(model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float) -> list[Track]:
    """`model.generate`, a request at a time, whatever `at_once` is."""
    return static(model, asks, prompts, 1, cap)


def static(model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float) -> list[Track]:
    """`model.generate` for `at_once` requests together, padded to the longest, until the longest answer is made; then
    the next ones. Of a shorter answer only what was asked for counts.
    """
    _generate(model, prompts[:at_once], _WARM_TOKENS, cap)
    tracks: list[Track] = []
    until = time.perf_counter() + cap
    for number in range(0, len(asks), at_once):
        left = until - time.perf_counter()
        if left <= 0:
            break
        together = asks[number : number + at_once]
        asked, times = _generate(model, prompts[number : number + at_once], max(ask.answer for ask in together), left)
        tracks += [_cut(ask, asked, times) for ask in together]
    return tracks


def continuous(model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float) -> list[Track]:
    """transformers' continuous batching as it comes, warmed up, with at most `at_once` requests in a batch."""
    return _continuous(model, asks, prompts, at_once, cap, {})


def compiled(model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float) -> list[Track]:
    """The same with its `default_compile_level` of 1."""
    return _continuous(model, asks, prompts, at_once, cap, {"default_compile_level": 1})


Baseline = Callable[[Any, Sequence[Ask], Sequence[Prompt], int, float], list[Track]]
BASELINES: dict[str, Baseline] = {
    "generate": one_by_one,
    "static": static,
    "continuous": continuous,
    "continuous-compiled": compiled,
}
DEFAULTS = ("generate", "static", "continuous")


def _generate(model: Any, prompts: Sequence[Prompt], answer: int, seconds: float) -> tuple[float, list[float]]:
    """One greedy `generate` with equal padding on the left: when it began and when each step had ended."""
    import torch
    import transformers

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=model.device)
    clock = _Clock()
    settings = transformers.GenerationConfig(
        max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0, max_time=seconds
    )
    began = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )  # fmt: skip
        made.tolist()  # waits for the device
    ended = time.perf_counter()
    return began, [*clock.times[:-1], ended][: made.shape[1] - longest]


class _Clock:
    """Called by `generate` after each step. The loop itself waits for the device once a step, so times are true to
    one step.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _cut(ask: Ask, asked: float, times: list[float]) -> Track:
    track = Track(ask, asked)
    for at in times[: ask.answer]:
        track.took(at, 1)
    return track


def _continuous(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float, more: dict[str, Any]
) -> list[Track]:
    import transformers
    from transformers.generation.continuous_batching.utils import WorkloadHints

    settings = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    hints = WorkloadHints(
        max_prompt_length=max(map(len, prompts)),
        max_generated_length=max(ask.answer for ask in asks),
        num_requests=at_once,
    )
    config = transformers.ContinuousBatchingConfig(max_requests_per_batch=at_once, **more)
    manager = model.init_continuous_batching(
        generation_config=settings, continuous_batching_config=config, workload_hints=hints
    )
    try:
        manager.warmup()
        manager.start()
        _collect(manager, _add(manager, [Ask(len(prompts[0]), _WARM_TOKENS)], prompts[:1], "warm"), cap)
        wanted = _add(manager, asks, prompts, "run")
        outputs = _collect(manager, wanted, cap)
        if len(outputs) < len(wanted):
            manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
            outputs |= _rest(manager)
    finally:
        with contextlib.suppress(RuntimeError):
            if manager.is_running():
                manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
            manager.destroy()
    lines_up = len(asks) > at_once
    tracks = [_track(ask, outputs[name], lines_up) for name, ask in wanted.items() if name in outputs]
    tracks = [track for track in tracks if track.times]
    if not tracks:
        errors = {str(output.error) for output in outputs.values() if output.error}
        raise BaselineFailed(f"no token within {cap:.0f} s" + "".join(f"; {error}" for error in sorted(errors)))
    return tracks


def _add(manager: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], name: str) -> dict[str, Ask]:
    """By the request's name."""
    named = {f"{name}-{number}": ask for number, ask in enumerate(asks)}
    for (request, ask), ids in zip(named.items(), prompts, strict=True):
        manager.add_request(ids, request_id=request, max_new_tokens=ask.answer, record_timestamps=True, eos_token_id=-1)
    return named


def _collect(manager: Any, wanted: dict[str, Ask], seconds: float) -> dict[str, Any]:
    """The outputs of those that ended within `seconds`."""
    outputs: dict[str, Any] = {}
    until = time.perf_counter() + seconds
    while len(outputs) < len(wanted) and time.perf_counter() < until and manager.is_running():
        output = manager.get_result(timeout=_POLL)
        if output is not None and output.is_finished() and output.request_id in wanted:
            outputs[output.request_id] = output
    return outputs


def _rest(manager: Any) -> dict[str, Any]:
    """What those that were stopped had made."""
    queue = manager.output_router.output_queue
    left: Iterator[Any] = iter([queue.get_nowait() for _ in range(queue.qsize())])
    return {output.request_id: output for output in left}


def _track(ask: Ask, output: Any, lines_up: bool) -> Track:
    """`lines_up`: more requests than places were handed over, and each begins when it gets one."""
    track = Track(ask, output.lifespan[0] if lines_up and output.lifespan[0] > 0 else output.created_time)
    for at in output.timestamps or ():
        track.took(at, 1)
    return track
