"""The engine's health: it is started once, restarted after a failure, and watched while it computes."""

import asyncio
import math
from collections.abc import Callable

import structlog

from worker.engines.base import Engine
from worker.watchdog import Watchdog

RESTART_SECONDS = (0.5, 30.0)  # pause after the first and the longest after later failures in a row

log = structlog.get_logger()


class EngineStuck(Exception):
    """The engine's thread hangs in a step and cannot be ended: only a new process helps."""


class EngineCare:
    """Owns the engine's life. `changed()` is called when `ready` or `detail` has changed; `hung(reason)` when a step
    does not end.
    """

    def __init__(
        self,
        engine: Engine | None,
        step_seconds: float,
        changed: Callable[[], None],
        hung: Callable[[str], None],
    ) -> None:
        self.ready = False
        self.failed = False
        self.detail = ""  # what is wrong, for people
        self.stuck: asyncio.Future[None] = (
            asyncio.get_running_loop().create_future()
        )  # a new process is needed
        self._engine = engine
        self._changed = changed
        self._hung = hung
        self._restarting: asyncio.Task[None] | None = None
        self._watchdog = Watchdog(engine, step_seconds, self._on_hang) if engine else None

    async def start(self) -> None:
        """Raises EngineUnavailable. A root has nothing to start."""
        if self._engine is not None:
            await self._engine.start()
        if self._watchdog is not None:
            self._watchdog.start()
        self.ready = True
        self._changed()

    def failure(self, reason: str) -> None:
        """A run ended by the engine's fault: no job starts until the engine was started again."""
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._restart(reason), name="engine restart")

    async def stop(self) -> None:
        """Ends the engine, and the restart that may be under way."""
        if self._watchdog is not None:
            await self._watchdog.stop()
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop()

    def _on_hang(self, seconds: float) -> None:
        died = seconds == math.inf
        reason = (
            "the engine's thread has died"
            if died
            else f"a step of the engine hangs for {seconds:.0f} s"
        )
        self._hung(reason)
        self.failure(reason)

    async def _restart(self, reason: str) -> None:
        """Tries until it works: a device may need a while."""
        engine = self._engine
        if engine is None:
            return
        pause, longest = RESTART_SECONDS
        self._tell(reason)
        log.error("engine failed, starting it again", reason=reason)
        while not self.ready:
            await engine.stop()
            if engine.stuck:
                self.stuck.set_result(None)
                return
            try:
                await engine.start()
            except (
                Exception
            ) as error:  # whatever a model or a device raises: the node says so and tries again
                self._tell(f"{reason}; it does not start again: {error}")
                await asyncio.sleep(pause)
                pause = min(longest, pause * 2)
            else:
                self.ready, self.failed, self.detail = True, False, ""
                log.info("engine works again")
                if self._watchdog is not None:
                    self._watchdog.start()
        self._changed()

    def _tell(self, detail: str) -> None:
        self.ready, self.failed, self.detail = False, True, detail
        self._changed()
