"""What an answer must look like, from the fields of a request to the wire's Grammar.

Each function raises PydanticCustomError for what cannot be a grammar, so that validators of bodies
call them as they are. Whether an engine can follow a grammar, its node says.
"""

from typing import Any

import msgspec
from pydantic_core import PydanticCustomError

from broker.wire import Grammar, GrammarKind

MAX_SCHEMA_BYTES = 256 * 1024
MAX_GRAMMAR_CHARACTERS = 256 * 1024
MAX_REGEX_CHARACTERS = 16 * 1024
MAX_OPTIONS = 4096
MAX_OPTION_CHARACTERS = 16 * 1024


def json_object() -> Grammar:
    """Any JSON object."""
    return Grammar(kind="json_object")


def json_schema(schema: Any) -> Grammar:
    """JSON that a schema describes; as text, it may be a schema's JSON."""
    return Grammar(kind="json_schema", source=schema_text(_as_schema(schema)))


def regex(pattern: str) -> Grammar:
    """A text that a regular expression describes, from its first character to its last."""
    return Grammar(kind="regex", source=_bounded(pattern, MAX_REGEX_CHARACTERS))


def choice(options: list[str]) -> Grammar:
    """One of these texts."""
    if not 0 < len(options) <= MAX_OPTIONS:
        raise _invalid(f"must have from 1 to {MAX_OPTIONS} texts")
    for option in options:
        _bounded(option, MAX_OPTION_CHARACTERS)
    return Grammar(kind="choice", source=msgspec.json.encode(options).decode())


def lark(grammar: str) -> Grammar:
    """What a grammar in Lark's syntax describes."""
    return Grammar(kind="lark", source=_bounded(grammar, MAX_GRAMMAR_CHARACTERS))


def grammar(kind: GrammarKind, value: Any) -> Grammar:
    """The grammar of that kind; `value`: what the function of its name takes."""
    match kind:
        case "json_object":
            return json_object()
        case "json_schema":
            return json_schema(value)
        case "regex":
            return regex(value)
        case "choice":
            return choice(value)
        case "lark":
            return lark(value)


def schema_text(schema: Any) -> str:
    """A JSON schema as the wire has it."""
    if not isinstance(schema, dict):
        raise _invalid("must be a JSON schema, an object")
    text = msgspec.json.encode(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise _invalid(f"a schema has at most {MAX_SCHEMA_BYTES} bytes")
    return text.decode()


def _as_schema(schema: Any) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(_bounded(schema, MAX_SCHEMA_BYTES))
    except msgspec.DecodeError as error:
        raise _invalid("must be a JSON schema: an object, or its JSON as a text") from error


def _bounded(text: str, most: int) -> str:
    if not text:
        raise _invalid("must not be empty")
    if len(text) > most:
        raise _invalid(f"must have at most {most} characters")
    return text


def _invalid(message: str) -> PydanticCustomError:
    return PydanticCustomError("grammar", "{reason}", {"reason": message})
