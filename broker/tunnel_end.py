"""The broker's end of tunnels: who may have one, and the bytes to and from the broker."""

import asyncio
import random
from urllib.parse import quote, urlsplit

from broker.addresses import Address, addresses
from broker.connections import close_connections, connect, refusal
from broker.errors import AccessRefused, ConnectionLost
from broker.tls import client_context
from broker.tunnel_login import OpeningLogin
from topology import names
from topology.prefix import Prefix

CHECK_SECONDS = 5.0
CONNECT_SECONDS = 5.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TunnelEnd:
    """`amqp_url`: the broker's addresses; whose login they have does not matter."""

    def __init__(self, amqp_url: str) -> None:
        self._addresses = addresses(amqp_url)

    async def check(self, user: str, password: str) -> None:
        """Has the broker itself judge the login of a joined node. Nobody else gets a tunnel: other
        users have more rights, and work beside the broker. Raises AccessRefused, ConnectionLost.
        """
        address = self._any()
        node = names.joined_node(Prefix(address.prefix).inside(user))
        if node is None or not names.is_node_name(node):
            raise AccessRefused("only nodes that have joined get a tunnel")
        parts = urlsplit(address.url)
        place = parts.netloc.rpartition("@")[2]
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        url = parts._replace(netloc=f"{login}@{place}").geturl()
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                checked = Address(url, address.fingerprint)
                connection = await connect(checked, "tunnel (login)", publishes=False)
        except TimeoutError as error:
            raise ConnectionLost(f"{address.place} does not answer") from error
        await close_connections([connection])

    async def connect(self, limit: int) -> Streams:
        """A connection on which nothing was said yet. `limit`: see asyncio.open_connection.

        Raises ConnectionLost, BadCertificate.
        """
        address = self._any()
        tls = client_context(address.fingerprint) if address.secure else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(
                    address.host, address.port, limit=limit, ssl=tls
                )
        except OSError as error:  # TimeoutError is one
            raise refusal(address, error) from error

    def opening(self, user: str) -> OpeningLogin:
        """What lets that user alone log in on the connection."""
        return OpeningLogin(user)

    def _any(self) -> Address:
        return random.choice(self._addresses)
