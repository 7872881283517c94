"""What must happen between a stop signal and the server's own shutdown."""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_actions: list[Callable[[], None]] = []  # none or one


def before_shutdown(action: Callable[[], None]) -> None:
    """Runs `action` in this event loop when a stop signal comes; the handlers that were there still get it.

    Called in the main thread, after the server has installed its handlers; without any, the signal simply kills.
    """
    _actions[:] = [action]
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        former = signal.getsignal(number)
        if callable(former):
            signal.signal(number, _chain(loop, action, former))


def act() -> None:
    """Runs the action now: the server finishes what is open, but not what never ends."""
    for action in _actions:
        action()


def _chain(
    loop: asyncio.AbstractEventLoop,
    action: Callable[[], None],
    former: Callable[[int, FrameType | None], object],
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(action)
        former(number, frame)

    return handle
