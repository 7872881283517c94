"""Requests to a server, its streams and refusals, and what a lost connection means."""

import asyncio
from typing import Any

import httpx
import msgspec

from worker.engines.base import EngineError
from worker.engines.openai.call import Call
from worker.engines.openai.errors import (
    BUSY_STATUSES,
    Refusal,
    ServerFailed,
    ServerUnavailable,
)

CONNECT_SECONDS = 10.0
WRITE_SECONDS = 30.0
FIRST_SECONDS = 600.0  # until the first token: behind a long prompt and other clients
PROBE_SECONDS = 2.0
_REFUSAL_BYTES = 65536


class Server:
    """A client for one server. `name`: its address without what may be secret in it."""

    def __init__(self, address: str, key: str) -> None:
        """Raises httpx.InvalidURL."""
        self.name = httpx.URL(address).netloc.decode()
        headers = {"Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.client = httpx.AsyncClient(
            base_url=address,
            headers=headers,
            timeout=httpx.Timeout(WRITE_SECONDS, connect=CONNECT_SECONDS, read=None),
            # no keep-alive: the server may have just closed a kept connection
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._key = key

    async def post(self, path: str, body: dict[str, Any], call: Call) -> httpx.Response | Refusal:
        """Sends one request; the caller closes the response.

        Raises EngineError if the server is not there or does not answer.
        """
        request = self.client.build_request(
            "POST",
            path,
            content=msgspec.json.encode(body),
            headers={"Content-Type": "application/json"},
        )
        try:
            response = await call.read(
                FIRST_SECONDS, lambda: self.client.send(request, stream=True)
            )
            if response.status_code == 200 and not _is_json(response):
                return response
            return await call.within(WRITE_SECONDS, lambda: self._refusal(response))
        except TimeoutError as error:
            raise ServerFailed(f"{self.name} does not answer") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            # the job never got there, so it is no suspect
            alive = await call.within(WRITE_SECONDS, self._is_alive)
            message = f"{self.name} is not there: {_reason(error)}"
            raise ServerUnavailable(message, isolated=alive) from error
        except httpx.HTTPError as error:
            raise await self.lost(error, call) from error

    async def lost(self, error: Exception, call: Call) -> EngineError:
        """What a lost connection means: one run's trouble, or the end of the whole server.

        The job may be to blame for either.
        """
        alive = await call.within(WRITE_SECONDS, self._is_alive)
        message = f"the connection to {self.name} was lost: {_reason(error)}"
        return ServerFailed(message, isolated=alive)

    async def _is_alive(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return (await self.client.get("models")).status_code not in BUSY_STATUSES
        except (TimeoutError, httpx.HTTPError):
            return False

    async def _refusal(self, response: httpx.Response) -> Refusal:
        body = b""
        try:
            async for received in response.aiter_bytes():
                body += received
                if len(body) > _REFUSAL_BYTES:
                    break
        finally:
            await response.aclose()
        text = body[:_REFUSAL_BYTES].decode(errors="replace")
        if self._key:
            text = text.replace(self._key, "(the key)")
        if response.status_code < 400:
            text = f"no stream of events, but {text}"
        return Refusal(response.status_code, text, response.headers.get("Retry-After", ""))


def _is_json(response: httpx.Response) -> bool:
    return "json" in response.headers.get("Content-Type", "")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
