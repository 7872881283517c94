"""Listens for clients, and bounds how many there are."""

import asyncio
import contextlib
import ipaddress
import signal
import ssl
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

from cli.errors import MachineError, SettingError
from cli.gateway import messages
from cli.gateway.connection import Connection, close
from cli.gateway.upstream import Api
from cli.ports import host_and_port

MOST_CONNECTIONS = 1_000
MOST_OF_ONE = 64  # from one address
MOST_BAD_KEYS = 10  # from one address, in BAD_KEY_SECONDS
BAD_KEY_SECONDS = 60.0
_MOST_REMEMBERED = 10_000  # addresses with bad keys
FINISH_SECONDS = 30.0  # for open answers, when the gateway stops


@dataclass(frozen=True)
class Settings:
    """Where it listens, and whom it asks. `certificate` and `private_key`: for TLS, or neither."""

    host: str
    port: int
    api: str
    certificate: Path | None = None
    private_key: Path | None = None


class BadKeys:
    """Counts bad keys by address, so that nobody can try many."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def blocked(self, sender: str, now: float) -> bool:
        """Whether this address has tried too many."""
        since, count = self._counts.get(sender, (now, 0))
        return count >= MOST_BAD_KEYS and now - since < BAD_KEY_SECONDS

    def add(self, sender: str, now: float) -> None:
        """One more."""
        since, count = self._counts.pop(sender, (now, 0))
        if now - since >= BAD_KEY_SECONDS:
            since, count = now, 0
        self._counts[sender] = (since, count + 1)
        if len(self._counts) > _MOST_REMEMBERED:
            self._counts.popitem(last=False)


class Gateway:
    """Serves clients until it is stopped."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._open: dict[asyncio.Task[object], Connection] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._senders: Counter[str] = Counter()
        self._bad_keys = BadKeys()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client. For asyncio.start_server.

        No coroutine: asyncio before 3.12 logs a traceback when a task of its own is cancelled.
        """
        task = asyncio.create_task(self.serve(reader, writer), name="gateway client")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, to the end."""
        peer = writer.get_extra_info("peername")
        if peer is None:  # it has left already
            await close(writer)
            return
        sender = str(peer[0])
        network = _network(sender)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        problem = self._problem(network)
        try:
            if problem is not None:
                writer.write(messages.error("too_many", problem))
                return
            connection = Connection(self._api, reader, writer, sender)
            self._open[task] = connection
            self._senders[network] += 1
            await connection.run()
            if connection.sent_bad_key:
                self._bad_keys.add(network, time.monotonic())
        finally:
            if self._open.pop(task, None) is not None:
                self._senders[network] -= 1
                self._senders += Counter()  # forgets those that are at zero
            await close(writer)

    async def finish(self) -> None:
        """Returns when all open answers are complete, at the latest after FINISH_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                await asyncio.gather(*(each.finish() for each in self._open.values()))
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _problem(self, network: str) -> str | None:
        if self._bad_keys.blocked(network, time.monotonic()):
            return f"{MOST_BAD_KEYS} wrong keys came from this address; try again in a minute"
        if self._senders[network] >= MOST_OF_ONE:
            return f"at most {MOST_OF_ONE} connections from one address"
        if len(self._open) >= MOST_CONNECTIONS:
            return f"at most {MOST_CONNECTIONS} connections; try again later"
        return None


def _network(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 client chooses from."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 4:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False))


async def run(settings: Settings) -> None:
    """Serves until a signal. Raises CliError if it cannot listen."""
    tls = _tls(settings)
    api = Api(settings.api)
    gateway = Gateway(api)
    try:
        server = await asyncio.start_server(
            gateway.accept, settings.host, settings.port, limit=messages.MAX_LINE, ssl=tls
        )
    except OSError as error:
        await api.close()
        raise MachineError(
            f"Cannot listen at {host_and_port(settings.host, settings.port)}: {error.strerror}"
        ) from error
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    port = server.sockets[0].getsockname()[1]
    kind = "TLS" if tls else "plain TCP"
    address = host_and_port(settings.host, port)
    print(f"The gateway is ready: {kind} at {address}, asks {settings.api}", flush=True)
    try:
        await stopping.wait()
        server.close()
        await gateway.finish()
    finally:
        server.close()
        await api.close()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.private_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"Cannot use {settings.certificate} for TLS: {error}") from error
    return context
