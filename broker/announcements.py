"""Changes to stored settings, which the API processes announce to each other.

An announcement carries no value: whoever keeps a copy reads it again. One that is made while the
broker is away reaches nobody, so at the beginning of a connection every listener is called.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import structlog

from broker.encoding import decode, encode
from broker.errors import DecodeError
from broker.job_messages import SettingChanged
from broker.session import Delivery, Session
from topology import names

PREFETCH = 100

log = structlog.get_logger()


class Announcements:
    """One API process's part."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._session: Session | None = None
        self._listeners: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)

    def listen(self, setting: str, listener: Callable[[], None]) -> None:
        """Calls `listener` when another process may have changed that setting."""
        self._listeners[setting].append(listener)

    def announce(self, setting: str) -> None:
        """Tells the other processes that this setting has changed. Never waits."""
        if self._session is not None:
            _publish(self._session, self._process, setting)

    async def open(self, session: Session) -> None:
        """Listens on a new session. Raises BrokerError."""
        queue = names.settings_watch(self._process)
        await session.declare_queue(queue, exclusive=True)
        await session.bind(queue, names.EVENTS_EXCHANGE, names.setting_key("*"))
        await session.consume(queue, self._on_change, prefetch=PREFETCH)
        self._session = session
        for setting in list(self._listeners):
            self._notify(setting)

    def close(self) -> None:
        """The session is lost."""
        self._session = None

    def _on_change(self, delivery: Delivery) -> None:
        delivery.ack()
        try:
            message = decode(delivery.body, SettingChanged)
        except DecodeError as error:
            log.warning("undecodable announcement dropped", reason=str(error))
            return
        if message.process != self._process:
            self._notify(message.setting)

    def _notify(self, setting: str) -> None:
        for listener in self._listeners.get(setting, ()):
            listener()


async def announce_once(session: Session, setting: str) -> bool:
    """Tells all API processes, for a command; False if none listens. Raises BrokerError."""
    return await _publish(session, "", setting)


def _publish(session: Session, process: str, setting: str) -> asyncio.Future[bool]:
    message = SettingChanged(process=process, setting=setting)
    return session.publish(names.EVENTS_EXCHANGE, names.setting_key(setting), encode(message))
