"""Starts the engine once, restarts it after a failure, and watches it while it computes."""

import asyncio
import math
from collections.abc import Callable

import structlog

from worker.engines.base import Engine
from worker.load_status import LoadStatus, following
from worker.watchdog import Watchdog

# The pause after the first failed restart, and the longest after later ones in a row.
RESTART_SECONDS = (0.5, 30.0)

log = structlog.get_logger()


class EngineSupervisor:
    """Owns the engine's life.

    `on_change()` is called when `ready` or `detail` has changed, `on_hang(reason)` when a step
    hangs.
    """

    def __init__(
        self,
        engine: Engine | None,
        step_seconds: float,
        on_change: Callable[[], None],
        on_hang: Callable[[str], None],
    ) -> None:
        self.ready = False
        self.failed = False
        self.detail = ""  # what is wrong, for people
        self.loading = LoadStatus()
        # resolved when only a new process can help
        self.stuck: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._engine = engine
        self._on_change = on_change
        self._on_hang = on_hang
        self._restarting: asyncio.Task[None] | None = None
        self._watchdog: Watchdog | None = None
        if engine is not None:
            self._watchdog = Watchdog(engine, step_seconds, self._step_hangs)

    async def start(self) -> None:
        """Starts the engine, if the node has one. Raises EngineUnavailable."""
        if self._engine is not None:
            with following(self.loading):
                await self._engine.start()
        if self._watchdog is not None:
            self._watchdog.start()
        self.ready = True
        self._on_change()

    def restart(self, reason: str) -> None:
        """A run ended by the engine's fault: no job starts until the engine is restarted."""
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

    def _step_hangs(self, seconds: float) -> None:
        if seconds == math.inf:
            reason = "the engine's thread has died"
        else:
            reason = f"a step of the engine hangs for {seconds:.0f} s"
        self._on_hang(reason)
        self.restart(reason)

    async def _restart(self, reason: str) -> None:
        """Tries until the engine starts: a device may need a while."""
        engine = self._engine
        if engine is None:
            return
        pause, longest = RESTART_SECONDS
        self._fail(reason)
        log.error("engine failed, restarting it", reason=reason)
        while not self.ready:
            await engine.stop()
            if engine.stuck:
                self.stuck.set_result(None)
                return
            try:
                with following(self.loading):
                    await engine.start()
            except Exception as error:
                # fate: whatever a model or a device raises, the node reports it and tries again
                self._fail(f"{reason}; it does not start again: {error}")
                await asyncio.sleep(pause)
                pause = min(longest, pause * 2)
            else:
                self.ready, self.failed, self.detail = True, False, ""
                log.info("engine works again")
                if self._watchdog is not None:
                    self._watchdog.start()
        self._on_change()

    def _fail(self, detail: str) -> None:
        self.ready, self.failed, self.detail = False, True, detail
        self._on_change()
