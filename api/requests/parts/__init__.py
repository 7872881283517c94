"""An answer's text taken apart: what the user reads, the reasoning before it, calls of tools.

Nodes send the model's text as it is, so that another node can continue it exactly. `Start` says how
the model marks calls and reasoning; whoever shows the answer reads it through a PartParser.
"""

from api.requests.parts.calls import CallParser
from api.requests.parts.formats import FORMATS
from api.requests.parts.harmony import HARMONY, HarmonyParser
from api.requests.parts.model import (
    CallArguments,
    CallBegins,
    Part,
    PartParser,
    PlainText,
    ReasoningPart,
    TextPart,
)
from api.requests.parts.pending_space import PendingSpace
from api.requests.parts.reasoning import REASONING, ReasoningParser, sendable, without_reasoning
from broker.wire import Job, Start

__all__ = [
    "CallArguments",
    "CallBegins",
    "Part",
    "PartParser",
    "PlainText",
    "ReasoningPart",
    "TextPart",
    "parser_for",
    "sendable",
    "without_reasoning",
]


def parser_for(job: Job, start: Start) -> PartParser:
    """The parser of an answer to `job` whose first run began with `start`."""
    parser: PartParser = PlainText()
    tools = {tool.name: tool for tool in job.tools if job.tool_choice != "none"}
    if start.reasoning_format == HARMONY:
        return PendingSpace(HarmonyParser(start.request_id, frozenset(tools)))
    call_format = FORMATS.get(start.tool_format)
    if tools and call_format is not None:
        must_call = job.tool_choice == "required"
        parser = CallParser(call_format, start.request_id, tools, must_call=must_call)
    marks = REASONING.get(start.reasoning_format)
    if marks is not None:
        parser = ReasoningParser(parser, marks)
    return parser if isinstance(parser, PlainText) else PendingSpace(parser)
