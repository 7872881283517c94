"""Calls of tools that the echo engine makes, so that agents can be tested without a model.

`call NAME {JSON}` in the last user message calls that tool with these arguments, unless results of
calls have come since. Where a call must come, and none is written, it is one of the tool that is
asked for, or of the first, with a small value for its arguments.
"""

import json
import re
from typing import Any

from broker.wire import Grammar, Job, Tool
from worker.engines.base import InvalidRequest
from worker.engines.echo_instance import instance

TOOL_FORMAT = "hermes"
_WRITTEN = re.compile(r"\bcall ([\w-]{1,64}) (?=\{)")


def calls_tools(job: Job) -> bool:
    """Whether the answer may call any."""
    return bool(job.messages and job.tools) and job.tool_choice != "none"


def call_text(job: Job) -> str | None:
    """The answer, if it is a call. Blocks. Raises InvalidRequest for a schema that none keeps."""
    if not calls_tools(job):
        return None
    tools = [tool for tool in job.tools if job.tool_name in ("", tool.name)]
    calls = _written_calls(job, {tool.name for tool in tools})
    if not calls and job.tool_choice == "required" and tools:
        calls = [(tools[0].name, _smallest(tools[0]))]
    if not job.parallel_tool_calls:
        calls = calls[:1]
    return "\n".join(_call(name, arguments) for name, arguments in calls) or None


def _written_calls(job: Job, names: set[str]) -> list[tuple[str, Any]]:
    last = (job.messages or ())[-1]
    if last.role != "user":
        return []
    calls: list[tuple[str, Any]] = []
    decoder = json.JSONDecoder()
    for match in _WRITTEN.finditer(last.content):
        try:
            arguments, _ = decoder.raw_decode(last.content, match.end())
        except (ValueError, RecursionError):
            continue
        if match[1] in names:
            calls.append((match[1], arguments))
    return calls


def _call(name: str, arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _smallest(tool: Tool) -> Any:
    """Small arguments that the tool's schema allows."""
    if not tool.parameters:
        return {}
    try:
        return json.loads(instance(Grammar(kind="json_schema", source=tool.parameters)))
    except InvalidRequest:
        if tool.strict:
            raise
        return {}  # any object, as of a model
