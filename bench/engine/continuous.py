"""transformers' own continuous batching, driven through its manager: as `generate_batch` does, but with a clock.

It writes down itself when each token was made. What is not made within a `cap` of seconds is stopped, and what it had
made until then counts.
"""

import contextlib
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.engine.load import ARRIVAL_ANSWER, BETWEEN, FIRST_TOKENS, Arrivals
from bench.engine.reading import Ask, Track

Prompt = list[int]
_WARM_TOKENS = 4
_POLL = 0.2  # seconds without a result until the clock is looked at
_STOP_SECONDS = 20.0
_PAGE = 256  # tokens, its default
_CPU_BATCH_TOKENS = 1024


class BaselineFailed(Exception):
    """It made nothing; the text is why."""


def plain(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float
) -> list[Track]:
    """As it comes, warmed up, with at most `at_once` requests in a batch. Raises BaselineFailed."""
    return _run(model, asks, prompts, at_once, cap, level=0)


def compiled(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float
) -> list[Track]:
    """The same with its `default_compile_level` of 1."""
    return _run(model, asks, prompts, at_once, cap, level=1)


def arrivals(
    model: Any,
    running: Sequence[Prompt],
    late: Sequence[Prompt],
    answer: int,
    seed: int,
    cap: float,
) -> Arrivals:
    """`running` prompts are answered with up to `answer` tokens; those of `late` arrive one after the other. See
    `bench.engine.load.run_arrivals`. Raises BaselineFailed.
    """
    drawn = random.Random(seed)
    streams, newcomers = (
        [Ask(len(ids), answer) for ids in running],
        [Ask(len(ids), ARRIVAL_ANSWER) for ids in late],
    )
    with _Session(model, [*streams, *newcomers], len(running) + 1, level=0) as session:
        session.warm(running[0], cap)
        until = time.perf_counter() + cap
        first = session.add("stream", streams, running, told=len(running) - 1)[-1]
        if not session.wait(first, until, tokens=FIRST_TOKENS):
            raise BaselineFailed(f"the streams did not run within {cap:.0f} s")
        for number, (ask, ids) in enumerate(zip(newcomers, late, strict=True)):
            time.sleep(drawn.expovariate(1 / BETWEEN))  # arrivals keep no step with the batches
            (name,) = session.add("late", [ask], [ids], first=number)
            if not session.wait(name, until):
                break
        session.stop()
        came = session.tracks("late", lines_up=False)
        return Arrivals(
            session.tracks("stream", lines_up=False), [track for track in came if track.times]
        )


def _run(
    model: Any, asks: Sequence[Ask], prompts: Sequence[Prompt], at_once: int, cap: float, level: int
) -> list[Track]:
    with _Session(model, asks, at_once, level) as session:
        session.warm(prompts[0], cap)
        until = time.perf_counter() + cap
        for name in session.add("run", asks, prompts):
            if not session.wait(name, until):
                break
        session.stop()
        tracks = [
            track for track in session.tracks("run", lines_up=len(asks) > at_once) if track.times
        ]
        if not tracks:
            raise BaselineFailed(
                f"no token within {cap:.0f} s" + "".join(f"; {each}" for each in session.errors())
            )
        return tracks


class _Session:
    """A manager and the requests it was given."""

    def __init__(self, model: Any, asks: Sequence[Ask], at_once: int, level: int) -> None:
        import transformers
        from transformers.generation.continuous_batching.utils import WorkloadHints

        self._asks: dict[str, Ask] = {}
        self._outputs: dict[str, Any] = {}  # the newest of each request
        self._manager = model.init_continuous_batching(
            generation_config=transformers.GenerationConfig(
                do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                max_requests_per_batch=at_once,
                default_compile_level=level,
                **_room(model, asks, at_once),
            ),
            workload_hints=WorkloadHints(
                max_prompt_length=max(ask.prompt for ask in asks),
                max_generated_length=max(ask.answer for ask in asks),
                num_requests=at_once,
            ),
        )

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            if self._manager.is_running():
                self._manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
            self._manager.destroy()

    def warm(self, prompt: Prompt, seconds: float) -> None:
        """Starts it, and has one short answer made."""
        self._manager.warmup()
        self._manager.start()
        (name,) = self.add("warm", [Ask(len(prompt), _WARM_TOKENS)], [prompt])
        self.wait(name, time.perf_counter() + seconds)

    def add(
        self,
        kind: str,
        asks: Sequence[Ask],
        prompts: Sequence[Prompt],
        first: int = 0,
        told: int | None = None,
    ) -> list[str]:
        """Hands requests over, numbered from `first`; returns their names. Of number `told` every token is told."""
        names = []
        for number, (ask, ids) in enumerate(zip(asks, prompts, strict=True), first):
            name = f"{kind}-{number}"
            names.append(name)
            self._asks[name] = ask
            self._manager.add_request(
                ids, request_id=name, max_new_tokens=ask.answer, record_timestamps=True, eos_token_id=-1,
                streaming=number == told,
            )  # fmt: skip
        return names

    def wait(self, name: str, until: float, tokens: int | None = None) -> bool:
        """Whether that request ended, or made so many tokens, before `until`."""
        while time.perf_counter() < until:
            output = self._outputs.get(name)
            if output is not None and (
                output.is_finished() or len(output.generated_tokens) >= (tokens or sys.maxsize)
            ):
                return True
            if not self._manager.is_running():
                return False
            self._take(self._manager.get_result(timeout=_POLL))
        return False

    def stop(self) -> None:
        """Ends all requests, and reads what they had made."""
        self._manager.stop(block=True, timeout=_STOP_SECONDS, hard_stop=True)
        queue = self._manager.output_router.output_queue
        for _ in range(queue.qsize()):
            self._take(queue.get_nowait())

    def tracks(self, kind: str, *, lines_up: bool) -> list[Track]:
        """Of the requests that were told of. `lines_up`: more than places were handed over, and each began when it got
        one.
        """
        named = [
            (ask, self._outputs.get(name))
            for name, ask in self._asks.items()
            if name.startswith(f"{kind}-")
        ]
        return [_track(ask, output, lines_up) for ask, output in named if output is not None]

    def errors(self) -> list[str]:
        """Different ones."""
        return sorted({str(output.error) for output in self._outputs.values() if output.error})

    def _take(self, output: Any) -> None:
        if output is not None:
            self._outputs[output.request_id] = output


def _room(model: Any, asks: Sequence[Ask], at_once: int) -> dict[str, int]:
    """Its cache takes nearly all memory by itself: a GPU's is there for that, but a machine's is others', too."""
    if model.device.type == "cuda":
        return {}
    blocks = 1 + max(ask.prompt + ask.answer for ask in asks) // _PAGE
    return {
        "page_size": _PAGE,
        "num_blocks": (at_once + 1) * (blocks + 1),
        "max_batch_tokens": _CPU_BATCH_TOKENS,
    }


def _track(ask: Ask, output: Any, lines_up: bool) -> Track:
    began = output.lifespan[0] if lines_up else 0.0
    track = Track(ask, began if began > 0 else output.created_time)
    for at in output.timestamps or ():
        track.took(at, 1)
    return track
