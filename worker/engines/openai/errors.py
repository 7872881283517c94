"""What a server's refusal means for a job: its own fault, a moment's, or the server's."""

import re
from typing import Any

import msgspec

from worker.engines.base import EngineError, EngineStopped

BUSY = (429, 502, 503, 504)  # the same request may be taken in a moment
MOST_SECONDS = 30.0  # of waiting, whatever a server asks for
_SHOWN = 300  # characters of a server's complaint
# vLLM, SGLang, llama.cpp, OpenAI, Canopy; each has its own words.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (length|size|window)|maximum (context|model|input) length"
    r"|longer than the (model|maximum)|prompt is too long|too many tokens",
    re.IGNORECASE,
)


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP answer that is no stream. `text`: its body, cut; `retry_after`: its header, empty if there is none."""

    status: int
    text: str
    retry_after: str = ""

    @property
    def busy(self) -> bool:
        """The server, or one before it, has no room just now, or is just starting: no fault of the job's."""
        return self.status in BUSY

    def error(self, address: str) -> EngineError:
        """What the run raises. What the configuration is to blame for (a key, a model that is gone) fails the engine,
        so that it looks again; everything else is the fault of this run alone.
        """
        said = f"{address} answers {self.status}: {complaint(self.text)}"
        if self.status == 413 or (self.status in (400, 422, 500) and _TOO_LONG.search(self.text)):
            return EngineError("too_long", complaint(self.text))
        if self.busy:
            return EngineStopped(said, alone=True)
        if self.status in (401, 404):
            return EngineError("engine", said, retryable=True)
        if 400 <= self.status < 500 and self.status != 408:
            return EngineError("invalid", complaint(self.text))
        return EngineError("engine", said, retryable=True, alone=True)

    def pause(self, otherwise: float) -> float:
        """Seconds until the next try: as the server asks, within bounds."""
        try:
            asked = float(self.retry_after)
        except ValueError:
            return otherwise
        return min(max(asked, otherwise), MOST_SECONDS) if asked >= 0 else otherwise


def in_stream(error: object, address: str) -> EngineError:
    """The same of an error that comes as an event, when the answer has begun: with a status if it names one."""
    told = error if isinstance(error, dict) else {}
    status = told.get("code")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 400 if told.get("type") == "invalid_request_error" else 500
    text = msgspec.json.encode({"error": error}).decode()
    return Refusal(status, text).error(address)


def complaint(text: str) -> str:
    """The words of a server's refusal, one line, cut. All that servers make of {"error": …} is tried."""
    try:
        found: Any = msgspec.json.decode(text)
    except msgspec.DecodeError:
        found = text
    while isinstance(found, dict):
        found = next(
            (found[key] for key in ("error", "message", "detail", "msg") if found.get(key)),
            str(found),
        )
    line = " ".join(str(found).split()) or "nothing"
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
