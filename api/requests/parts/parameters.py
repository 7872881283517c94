"""A tool's parameters, for formats that write values without quotes."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from broker.plain_parameters import is_plain_text
from broker.wire import Tool

Tools = Mapping[str, Tool]


def properties(tools: Tools, name: str) -> dict[str, Any]:
    """The schemas of the tool's parameters, in their order; none for a tool that is not known."""
    tool = tools.get(name)
    if tool is None or not tool.parameters:
        return {}
    try:
        schema = msgspec.json.decode(tool.parameters)
    except (msgspec.DecodeError, RecursionError):
        return {}
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def json_value(text: str, schema: Any) -> str:
    """The value that a model wrote, as JSON: a text if its schema says so, or if it is no JSON."""
    if not is_plain_text(schema):
        try:
            msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            return text.strip()
    return json.dumps(text, ensure_ascii=False)
