"""What transformers does by itself with the same model object: `generate`, and its own continuous batching.

Each gives tracks as the engine's loads do. None takes much longer than its `cap` in seconds: what it made until then
counts.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.engine import continuous
from bench.engine.reading import Ask, Track

Prompt = list[int]
_WARM_TOKENS = 4


def one_by_one(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float
) -> list[Track]:
    """`model.generate`, a request at a time, whatever `at_once` is."""
    return static(model, asks, prompts, 1, cap)


def static(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float
) -> list[Track]:
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
        asked, times = _generate(
            model, prompts[number : number + at_once], max(ask.answer for ask in together), left
        )
        tracks += [_cut(ask, asked, times) for ask in together]
    return tracks


Baseline = Callable[[Any, Sequence[Ask], Sequence[Prompt], int, float], list[Track]]
BASELINES: dict[str, Baseline] = {
    "generate": one_by_one,
    "static": static,
    "continuous": continuous.plain,
    "continuous-compiled": continuous.compiled,
}
DEFAULTS = ("generate", "static", "continuous")


def _generate(
    model: Any, prompts: Sequence[Prompt], answer: int, seconds: float
) -> tuple[float, list[float]]:
    """One greedy `generate` with equal padding on the left: when it began and when each step had ended."""
    import torch
    import transformers

    longest = max(map(len, prompts))
    ids = torch.tensor(
        [[0] * (longest - len(each)) + each for each in prompts], device=model.device
    )
    mask = torch.tensor(
        [[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=model.device
    )
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
