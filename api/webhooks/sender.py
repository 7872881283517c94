"""Sends one message: bounded in time, without redirects, to a public address."""

import asyncio
import time
from collections.abc import Collection

import httpcore

from api.webhooks import signature
from api.webhooks.addresses import ForbiddenAddress, GuardedNetwork

SECONDS = 10.0  # for the connection, the request and the head of the response
_OK = range(200, 300)


class SendFailed(Exception):
    """It did not arrive; the text says why, and `permanent` whether that can change."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class WebhookSender:
    """`exempt`: hosts that may be in a private network."""

    def __init__(self, exempt: Collection[str]) -> None:
        self.exempt = exempt

    async def send(self, url: str, secret: str, message: str, body: bytes) -> None:
        """Raises SendFailed unless the response is a success."""
        try:
            fields = signature.headers(secret, message, int(time.time()), body)
        except ValueError as error:
            raise SendFailed(f"cannot be signed: the secret {error}", permanent=True) from error
        fields += [("Content-Type", "application/json"), ("User-Agent", "canopy-webhook")]
        try:
            # A pool of its own: no connection is used for another address, or kept.
            async with (
                asyncio.timeout(SECONDS),
                self._pool() as pool,
                pool.stream("POST", url, headers=fields, content=body) as response,
            ):
                status = response.status  # the body is not read
        except TimeoutError as error:
            raise SendFailed(f"no response within {SECONDS:.0f} s") from error
        except ForbiddenAddress as error:
            raise SendFailed(str(error), permanent=True) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise SendFailed(f"no response: {error or type(error).__name__}") from error
        except (httpcore.UnsupportedProtocol, OSError, ValueError) as error:
            raise SendFailed(f"cannot be sent: {error}") from error
        if status not in _OK:
            raise SendFailed(f"the response's status was {status}", permanent=status == 410)

    def _pool(self) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(
            max_connections=1, network_backend=GuardedNetwork(self.exempt)
        )
