"""OpenAI's response object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from api.responses.output import Item
from broker.wire import Failed, Finished

Status = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]
PREFIX = "resp_"


@dataclass(frozen=True, slots=True)
class Shape:
    """One response. `name`: its id without the prefix; `parameters`: what it repeats of its
    request, and when it was created.
    """

    name: str
    parameters: dict[str, Any]

    def unfinished(self, status: Status) -> dict[str, Any]:
        """The object before the answer has ended."""
        return self._response(status)

    def finished(
        self, status: Status, output: Sequence[Item], usage: dict[str, Any], *, completed: int
    ) -> dict[str, Any]:
        """The object of an answer that has ended without a failure."""
        response = self._response(status)
        response.update(output=list(output), usage=usage)
        if status == "completed":
            response["completed_at"] = self.parameters.get("completed_at") or completed
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return response

    def failed(self, frame: Failed) -> dict[str, Any]:
        """The object of an answer that failed."""
        is_clients = frame.code in ("invalid", "too_long")
        code = "invalid_prompt" if is_clients else "server_error"
        return {**self._response("failed"), "error": {"code": code, "message": frame.message}}

    def _response(self, status: Status) -> dict[str, Any]:
        return {
            "id": f"{PREFIX}{self.name}",
            "object": "response",
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **self.parameters,
            "completed_at": None,
        }


def usage(end: Finished, reasoning: float) -> dict[str, Any]:
    """Token counts. `reasoning`: its part of the answer's characters, from 0 to 1."""
    return {
        "input_tokens": end.prompt_tokens,
        "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": end.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": round(end.completion_tokens * reasoning)},
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


def name_of(response_id: str) -> str:
    """A response's name, from the id that a client sent."""
    return response_id.removeprefix(PREFIX)
