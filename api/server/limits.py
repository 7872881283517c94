"""Limits of what a client may use before it is authenticated: bytes, seconds, connections."""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network

DISCARDED_BYTES = 8 << 20  # of input that is discarded after an error response
TIMED_BYTES = 1 << 20  # of a body, which must arrive within `body_seconds`
LINGER_SECONDS = 2.0  # how long input is discarded, so that the client can read the response


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Per connection; the last two are numbers of connections of this process."""

    url_bytes: int = 16_384
    head_bytes: int = 32_768  # request line and headers together
    headers: int = 128
    head_seconds: float = 15.0  # from the first byte of a request to the end of its headers
    body_seconds: float = 60.0  # from there to the end of its body, or for each TIMED_BYTES of it
    stalled_seconds: float = 120.0  # for which a client may not read its response
    unread_bytes: int = 512 * 1024  # of a body, buffered until the application receives it
    pipelined: int = 32  # requests behind an earlier one of the connection
    connections: int = 10_000
    peer_connections: int = 256


@lru_cache(maxsize=4096)  # every request asks, and most come from few addresses
def peer_of(host: str) -> str:
    """The unit that is limited: an IPv4 address, or an IPv6 client's /64 network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Connections:
    """Counts the open connections of this process, in total and by peer.

    `proxies`: networks whose connections carry many clients; only the total limits them.
    """

    def __init__(self, limits: Limits, proxies: Sequence[Network]) -> None:
        self._limits = limits
        self._proxies = proxies
        self._total = 0
        self._by_peer: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """The number of open connections."""
        return self._total

    def open(self, host: str | None) -> bool:
        """Counts one more connection from `host`; False, uncounted, beyond the limits."""
        if self._total >= self._limits.connections:
            return False
        if self._is_limited(host):
            peer = peer_of(host or "")
            if self._by_peer[peer] >= self._limits.peer_connections:
                return False
            self._by_peer[peer] += 1
        self._total += 1
        return True

    def close(self, host: str | None) -> None:
        """A connection that was counted has ended."""
        self._total -= 1
        if self._is_limited(host):
            peer = peer_of(host or "")
            self._by_peer[peer] -= 1
            if self._by_peer[peer] <= 0:
                del self._by_peer[peer]

    def _is_limited(self, host: str | None) -> bool:
        return host is not None and not is_within(host, self._proxies)


def is_within(host: str, networks: Sequence[Network]) -> bool:
    """Whether the address lies in one of the networks."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
