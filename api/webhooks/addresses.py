"""Which addresses may be sent to.

Anybody with an account names the address, so this server must not be a way into the network around
it: only public addresses are connected to, whatever a name resolves to at that moment. Hosts of
CANOPY_WEBHOOK_HOSTS are exempt.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

import httpcore

LONGEST_URL = 2000
# Public by their number, but they lead to IPv4 addresses behind them: NAT64, 6to4, Teredo.
_TUNNELS = [ipaddress.ip_network(each) for each in ("64:ff9b::/96", "2002::/16", "2001::/32")]


class ForbiddenAddress(Exception):
    """An address that must not be sent to; the text says why."""


def check_url(url: str, exempt: Collection[str]) -> None:
    """Refuses what can be seen to be wrong before it is resolved. Raises ForbiddenAddress."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise ForbiddenAddress(f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ForbiddenAddress("must be a URL like https://example.org/hook")
    if not (url.isascii() and url.isprintable()) or " " in url or len(url) > LONGEST_URL:
        raise ForbiddenAddress(f"must have at most {LONGEST_URL} printable ASCII characters")
    if "@" in parts.netloc:
        raise ForbiddenAddress("must not contain a name or password")
    if host not in exempt and (host == "localhost" or host.endswith(".localhost")):
        raise _private(host)
    if host not in exempt and _is_literal(host) and not is_public(host):
        raise _private(host)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to nobody's private network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if any(ip in network for network in _TUNNELS if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _private(host: str) -> ForbiddenAddress:
    return ForbiddenAddress(
        f"{host[:100]} is an address of a private network; the operators of this service can "
        "allow it with CANOPY_WEBHOOK_HOSTS"
    )


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses alone: what is checked is what is connected to.

    A check of the name before the request would not hold: a name may resolve to something else the
    next moment.
    """

    def __init__(self, exempt: Collection[str]) -> None:
        self._exempt = exempt
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises ForbiddenAddress, or as httpcore's own."""
        address = await self._resolve(host, port)
        return await self._network.connect_tcp(
            address, port, timeout, local_address, socket_options
        )

    async def _resolve(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from error
        addresses = [str(each[4][0]) for each in found]
        if host not in self._exempt and not all(map(is_public, addresses)):
            raise _private(host)
        return addresses[0]
