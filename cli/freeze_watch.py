"""Kills processes that freeze; liveness.py has the rule."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from broker.heartbeat import STACK_DUMP_SIGNAL
from cli import liveness
from cli.liveness import SilenceTimer
from cli.process import Child
from cli.service import Service

PROBE_SECONDS = 3.0  # between two probes of a process that gives no signs of life itself
_STACK_DUMP_SECONDS = 1.0  # for a frozen process to log its stacks


class FreezeWatch:
    """`frozen_seconds`: silence after which a process is killed; None: it watches nothing.

    `on_end(task)` is called when one of its own tasks has ended, perhaps by an error.
    """

    def __init__(
        self,
        frozen_seconds: float | None,
        say: Callable[[str], None],
        on_end: Callable[["asyncio.Task[None]"], None],
    ) -> None:
        self._frozen_seconds = frozen_seconds
        self._say = say
        self._on_end = on_end

    @contextlib.asynccontextmanager
    async def watched(self, service: Service, child: Child) -> AsyncIterator[None]:
        """Kills the process if it freezes while the block runs, which should wait for its end."""
        if self._frozen_seconds is None or not (service.spec.beats or service.answers):
            yield
            return
        silence = SilenceTimer(self._frozen_seconds, time.monotonic())
        tasks = [asyncio.create_task(self._kill_if_frozen(service.name, child, silence))]
        if service.answers:
            tasks.append(asyncio.create_task(_probe(service.answers, silence)))
        for task in tasks:
            task.add_done_callback(self._on_end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _kill_if_frozen(self, name: str, child: Child, silence: SilenceTimer) -> None:
        while not silence.is_frozen(time.monotonic()):
            await asyncio.sleep(liveness.CHECK_SECONDS)
            if child.last_sign is not None:
                silence.sign(child.last_sign)
        self._say(f"{name} gives no sign of life: killing it")
        if child.spec.beats:
            child.send(STACK_DUMP_SIGNAL)
            await asyncio.sleep(_STACK_DUMP_SECONDS)
        child.kill()


async def _probe(answers: Callable[[], Awaitable[bool]], silence: SilenceTimer) -> None:
    """Probes a process for ever; each answer is a sign of life."""
    while True:
        if await answers():
            silence.sign(time.monotonic())
        await asyncio.sleep(PROBE_SECONDS)
