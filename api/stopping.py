"""What must happen between a stop signal and the server's own shutdown."""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def before_shutdown(action: Callable[[], None]) -> None:
    """Runs `action` in this event loop when a stop signal comes; the handlers that were there still get it.

    Called in the main thread, after the server has installed its handlers.
    """
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        signal.signal(number, _chain(loop, action, signal.getsignal(number)))


def _chain(loop: asyncio.AbstractEventLoop, action: Callable[[], None], former: object) -> Callable[..., None]:
    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(action)
        if callable(former):
            former(number, frame)

    return handle
