"""Schemas of tools, where a format writes each argument by itself. Pure."""

import json
import re
from typing import Any, NamedTuple

from broker.plain_parameters import is_plain_text
from broker.wire import Tool

# Formats that write each argument by itself, and what the names of arguments may be there.
SEPARATE = {
    "qwen3-coder": re.compile(r"[^\s<>\"\\]{1,128}"),
    "glm": re.compile(r"[^\s<>\"\\]{1,128}"),
    "tool-code": re.compile(r"[A-Za-z_]\w{0,127}"),
}
QUOTES_TEXTS = ("tool-code",)
_WITHOUT_GRAMMAR = ("gemma4", "functiongemma")
_OBJECT_KEYS = frozenset(
    ["type", "properties", "required", "additionalProperties", "$defs", "definitions"]
)
_ANNOTATIONS = frozenset(["$schema", "title", "description", "default", "examples"])
_TEXT_KEYS = frozenset(["type", "enum", "const", "minLength", "maxLength"])
_LONGEST_TEXT = 1000  # characters that a grammar counts
_REFERENCE = re.compile(r"#/(\$defs|definitions)/")


class Parameter(NamedTuple):
    """One argument of a tool. `schema`: of its value, complete in itself."""

    name: str
    schema: Any
    required: bool
    text: bool  # written as it is, where a format has no quotes


def parameters(tool: Tool) -> list[Parameter] | None:
    """What the tool takes, in the order of its schema; None if its schema says more than that."""
    schema = _decoded(tool.parameters) if tool.parameters else {}
    if not isinstance(schema, dict) or not _is_plain_object(schema):
        return None
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not set(required) <= set(properties):
        return None
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    found: list[Parameter] = []
    for name, own in properties.items():
        value = {} if own is True else own
        if not isinstance(value, dict) or not _is_complete(value):
            return None
        text = is_plain_text(value)
        if not text and shared:
            value = {**value, **shared}
        found.append(Parameter(name, value, name in required, text))
    return found


def text_options(schema: dict[str, Any]) -> list[str] | None:
    """The texts that a text's schema allows; None: others, too."""
    if "enum" not in schema and "const" not in schema:
        return None
    options = schema.get("enum", [schema.get("const")])
    return [option for option in options if isinstance(option, str)]


def is_expressible(tool_format: str, tools: tuple[Tool, ...]) -> bool:
    """Whether a grammar in that format keeps the schemas of all these tools."""
    if tool_format in _WITHOUT_GRAMMAR:
        return False
    names = SEPARATE.get(tool_format)
    if names is None:
        return True
    for tool in tools:
        found = parameters(tool)
        if found is None:
            return False
        for each in found:
            if names.fullmatch(each.name) is None:
                return False
            if tool_format not in QUOTES_TEXTS and not _has_simple_text(each):
                return False
    return True


def _is_plain_object(schema: dict[str, Any]) -> bool:
    if schema.get("type", "object") != "object" or not set(schema) <= _OBJECT_KEYS | _ANNOTATIONS:
        return False
    required = schema.get("required", [])
    return isinstance(required, list) and all(isinstance(name, str) for name in required)


def _is_complete(value: Any) -> bool:
    """Whether everything that the schema refers to goes with it."""
    if isinstance(value, list):
        return all(map(_is_complete, value))
    if not isinstance(value, dict):
        return True
    for key, inner in value.items():
        if key == "$ref" and not (isinstance(inner, str) and _REFERENCE.match(inner)):
            return False
        if key in ("$defs", "definitions", "$id", "$anchor", "$dynamicRef"):
            return False
        if not _is_complete(inner):
            return False
    return True


def _has_simple_text(parameter: Parameter) -> bool:
    """Whether a text may be written without quotes and still keep its schema."""
    if not parameter.text:
        return True
    schema = parameter.schema
    if not set(schema) <= _TEXT_KEYS | _ANNOTATIONS:
        return False
    least, most = schema.get("minLength", 0), schema.get("maxLength", 0)
    if not all(
        isinstance(length, int) and 0 <= length <= _LONGEST_TEXT for length in (least, most)
    ):
        return False
    if "enum" in schema and not isinstance(schema["enum"], list):
        return False
    return text_options(schema) != []


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
