"""What a server's refusal means for a job: its own fault, a moment's, or the server's."""

import re
from typing import Any

import msgspec

from worker.engines.base import EngineError, EngineFailed, InvalidRequest, PromptTooLong

BUSY_STATUSES = (429, 502, 503, 504)  # the same request may be accepted in a moment
MAX_PAUSE_SECONDS = 30.0  # whatever a server asks for
_MAX_COMPLAINT = 300  # characters
# The words of vLLM, SGLang, llama.cpp, OpenAI and Canopy.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (length|size|window)"
    r"|maximum (context|model|input) length|longer than the (model|maximum)"
    r"|prompt is too long|too many tokens",
    re.IGNORECASE,
)


class ServerUnavailable(EngineError):
    """Retryable, nobody's fault: the server is busy, or nothing listens at its address."""

    retryable = True
    suspect = False


class ServerFailed(EngineFailed):
    """Retryable: the server failed, fell silent or broke off while the job ran."""


class CannotContinue(EngineError):
    """Permanent: the server cannot continue a delivered answer in this way; nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the answer cannot be continued: {message}")


class Refusal(msgspec.Struct, frozen=True):
    """A response that is no stream. `text`: its body, cut; `retry_after`: the header, or empty."""

    status: int
    text: str
    retry_after: str = ""

    @property
    def busy(self) -> bool:
        """The server, or a proxy before it, has no room just now or is starting."""
        return self.status in BUSY_STATUSES

    def error(self, address: str) -> EngineError:
        """What the run raises.

        A fault of the configuration (a key, a model that is gone) fails the whole engine, so that
        it looks again; everything else is this run's alone.
        """
        message = f"{address} answers {self.status}: {complaint(self.text)}"
        too_long = self.status in (400, 422, 500) and _TOO_LONG.search(self.text)
        if self.status == 413 or too_long:
            return PromptTooLong(complaint(self.text))
        if self.busy:
            return ServerUnavailable(message, isolated=True)
        if self.status in (401, 404):
            return ServerFailed(message)
        if 400 <= self.status < 500 and self.status != 408:
            return InvalidRequest(complaint(self.text))
        return ServerFailed(message, isolated=True)

    def pause(self, default: float) -> float:
        """Seconds until the next try: what the server asks for, within bounds."""
        try:
            seconds = float(self.retry_after)
        except ValueError:
            return default
        if not seconds >= 0:  # negative or NaN
            return default
        return min(max(seconds, default), MAX_PAUSE_SECONDS)


def error_of_event(error: object, address: str) -> EngineError:
    """The same for an error event, once the answer has begun: with a status if it names one."""
    fields: dict[str, Any] = {}
    if isinstance(error, dict):
        fields = error
    status = fields.get("code")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 500
        if fields.get("type") == "invalid_request_error":
            status = 400
    text = msgspec.json.encode({"error": error}).decode()
    return Refusal(status, text).error(address)


def complaint(text: str) -> str:
    """The words of a refusal on one line, cut; understands what servers make of {"error": ...}."""
    try:
        message: Any = msgspec.json.decode(text)
    except msgspec.DecodeError:
        message = text
    while isinstance(message, dict):
        message = _inner_message(message)
    line = " ".join(str(message).split()) or "nothing"
    if len(line) > _MAX_COMPLAINT:
        line = f"{line[:_MAX_COMPLAINT]}…"
    return line


def _inner_message(fields: dict[str, Any]) -> Any:
    for key in ("error", "message", "detail", "msg"):
        if fields.get(key):
            return fields[key]
    return str(fields)
