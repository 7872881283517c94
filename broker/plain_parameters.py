"""Which parameters of a tool are written as they are, by call formats that are not JSON.

Nodes write grammars by this rule and the API reads calls by it, so both must keep the same. Pure.
"""

from typing import Any


def is_plain_text(schema: Any) -> bool:
    """Whether the schema itself, without what it refers to, says that the value is a text."""
    if not isinstance(schema, dict):
        return False
    if "type" in schema:
        return bool(schema["type"] == "string")
    options = schema.get("enum", [schema.get("const")])
    return isinstance(options, list) and bool(options) and all(map(_is_text, options))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
