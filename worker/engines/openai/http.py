"""The way to a server: requests out, streams or refusals back, and what a lost connection means."""

import asyncio
from typing import Any

import httpx
import msgspec

from worker.engines.base import EngineError, EngineStopped
from worker.engines.openai.call import Call
from worker.engines.openai.errors import BUSY, Refusal

CONNECT_SECONDS = 10.0
WRITE_SECONDS = 30.0
FIRST_SECONDS = (
    600.0  # until the first token: a long prompt is read, and other clients may be before us
)
PROBE_SECONDS = 2.0
_REFUSAL_BYTES = 65536


class Server:
    """A client for one server. `name`: its address for people, without what may be secret in it."""

    def __init__(self, address: str, key: str) -> None:
        """A connection a request: one that was kept may be one that the server has just closed."""
        self.name = httpx.URL(address).netloc.decode()
        self.client = httpx.AsyncClient(
            base_url=address,
            headers={"Accept-Encoding": "identity"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(WRITE_SECONDS, connect=CONNECT_SECONDS, read=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._key = key

    async def ask(self, path: str, body: dict[str, Any], call: Call) -> httpx.Response | Refusal:
        """Sends one request; the response is the caller's to close. Raises EngineError if the server is not there, or
        does not answer.
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
            if response.status_code == 200 and "json" not in response.headers.get(
                "Content-Type", ""
            ):
                return response
            return await call.within(WRITE_SECONDS, lambda: self._refusal(response))
        except TimeoutError as error:
            raise EngineError("engine", f"{self.name} does not answer", retryable=True) from error
        except (
            httpx.ConnectError,
            httpx.ConnectTimeout,
        ) as error:  # the job has done nothing to it
            alive = await call.within(WRITE_SECONDS, self._alive)
            raise EngineStopped(f"{self.name} is not there: {_said(error)}", alone=alive) from error
        except httpx.HTTPError as error:
            raise await self.lost(error, call) from error

    async def lost(self, error: Exception, call: Call) -> EngineError:
        """What the loss of a connection means: one run's trouble, or the end of a server that does not answer any more.
        The job may be to blame for either.
        """
        message = f"the connection to {self.name} was lost: {_said(error)}"
        return EngineError(
            "engine", message, retryable=True, alone=await call.within(WRITE_SECONDS, self._alive)
        )

    async def _alive(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return (await self.client.get("models")).status_code not in BUSY
        except (TimeoutError, httpx.HTTPError):
            return False

    async def _refusal(self, response: httpx.Response) -> Refusal:
        text = b""
        try:
            async for piece in response.aiter_bytes():
                text += piece
                if len(text) > _REFUSAL_BYTES:
                    break
        finally:
            await response.aclose()
        shown = text[:_REFUSAL_BYTES].decode(errors="replace")
        if self._key:
            shown = shown.replace(self._key, "(the key)")
        if response.status_code < 400:
            shown = f"no stream of events, but {shown}"
        return Refusal(response.status_code, shown, response.headers.get("Retry-After", ""))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
