"""An engine that calls tools on cue (`--engine tests.clients.tool_caller`): a model by rule.

The packaged model never saw a tool, and a client's loop is to be tested, not a model's wit. Offered
tools, it calls the first with arguments that suit its schema; given a result, it tells the result.
A message with `SAY` and a text in JSON's notation is answered with that text, and others as echo
answers them.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from broker.wire import Job
from worker.engines.base import Chunk
from worker.engines.echo import EchoEngine, last_message

_PIECE = 7  # characters
_SAY = re.compile(r'SAY ("(?:[^"\\]|\\.)*")')
_VALUES: dict[str, Any] = {
    "string": "Oslo",
    "integer": 3,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}


class ToolCaller(EchoEngine):
    """Keeps the `Engine` protocol as echo does, and says something else."""

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        """Streams the answer in pieces that are no tokens; see the protocol."""
        yield Chunk(prompt_tokens=1, tokens=len(job.delivered) // _PIECE)
        rest = answer(job)[len(job.delivered) :]
        for start in range(0, len(rest), _PIECE):
            yield Chunk(text=rest[start : start + _PIECE], tokens=1)
        yield Chunk(finish="stop")


def answer(job: Job) -> str:
    """What it says to the job."""
    messages = job.messages or ()
    if messages and messages[-1].role == "tool":
        return f"It says: {messages[-1].content}"
    cue = _SAY.search(last_message(job))
    if cue is not None:
        return str(json.loads(cue[1]))
    if not job.tools or job.tool_choice == "none":
        return last_message(job)
    return _call(job)


def _call(job: Job) -> str:
    """A call of the tool that the job names, or of the first."""
    tool = next((tool for tool in job.tools if tool.name == job.tool_name), job.tools[0])
    arguments = _value(json.loads(tool.parameters or '{"type": "object"}'))
    text = json.dumps({"name": tool.name, "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call>"


def _value(schema: Mapping[str, Any]) -> Any:
    """A value of a JSON schema, as far as clients' tools need it."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _value(properties[name]) for name in schema.get("required", properties)}
    return _VALUES[kind] if isinstance(kind, str) else _VALUES["string"]


def create(
    *, model: str, model_path: str | None, device: str, slots: int, token_delay: float
) -> ToolCaller:
    """As for the engines in `worker.engines`."""
    return ToolCaller(model=model, slots=slots, token_delay=token_delay)
