"""The API as the gateway asks it."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import msgspec

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0  # the API sends an empty line every 15 s
_REFUSAL_BYTES = 65_536


class Refused(Exception):
    """The API's refusal. `code`: its kind; `status` of HTTP."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Api:
    """A client for the API at `url`."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    async def close(self) -> None:
        """Ends all connections."""
        await self._http.aclose()

    async def models(self, key: str, sender: str) -> list[str]:
        """The models that the key may use. Raises Refused."""
        try:
            answer = await self._http.get("/v1/models", headers=_headers(key, sender))
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if answer.status_code != 200:
            raise _refusal(answer.status_code, answer.content)
        return [str(model["id"]) for model in answer.json()["data"]]

    async def answer(
        self, body: dict[str, Any], key: str, sender: str
    ) -> AsyncGenerator[bytes, None]:
        """The answer's lines. Closing the generator cancels the job. Raises Refused."""
        headers = _headers(key, sender)
        try:
            async with self._http.stream("POST", "/arranca/", json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    raise _refusal(answer.status_code, await answer.aread())
                rest = b""  # httpx's own lines also end at U+2028 and others
                async for part in answer.aiter_bytes():
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        yield line
        except httpx.HTTPError as error:
            raise _unreachable(error) from error


def _headers(key: str, sender: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "X-Forwarded-For": sender}


def _unreachable(error: httpx.HTTPError) -> Refused:
    reason = str(error) or type(error).__name__
    return Refused(503, "unreachable", f"the API does not answer ({reason}); try again later")


def _refusal(status: int, content: bytes) -> Refused:
    """From the API's error, in whichever of its shapes."""
    try:
        body = msgspec.json.decode(content[:_REFUSAL_BYTES])
        error = body.get("error", body) if isinstance(body, dict) else {}
        return Refused(status, str(error["code"]), str(error["message"]))
    except (msgspec.DecodeError, KeyError, TypeError):
        return Refused(status, "refused", f"the API refused with status {status}")
