"""A request's grammar in llguidance's own form, or the reason why it is refused. Pure."""

import json
from typing import Any

import msgspec
from llguidance import LLMatcher

from broker.wire import Grammar
from worker.engines.base import InvalidRequest

MAX_SOURCE = 256 * 1024  # bytes
MAX_CHOICES = 10_000
_MAX_MESSAGE = 500  # characters of llguidance's explanation

# Last in line, so that no "x-guidance" in a schema loosens them. White space is bounded: a weak
# model would go on with it for ever.
_JSON_OPTIONS: Any = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"[\x20\x0A]{1,32}",
    "coerce_one_of": False,
    "lenient": False,
}


def compilable(grammar: Grammar) -> str:
    """What LLMatcher takes. Raises InvalidRequest."""
    if len(grammar.source.encode()) > MAX_SOURCE:
        raise InvalidRequest(f"the grammar is longer than {MAX_SOURCE // 1024} KiB")
    if grammar.kind == "json_object":
        return _from_schema('{"type": "object"}')
    if grammar.kind == "json_schema":
        return _from_schema(grammar.source)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_lark(_choice(grammar.source))
    return LLMatcher.grammar_from_lark(grammar.source)


def refusal(grammar: Grammar, reason: str) -> InvalidRequest:
    """With llguidance's reason, which may have several lines."""
    names = {"json_schema": "JSON schema", "json_object": "JSON", "regex": "regular expression"}
    name = names.get(grammar.kind, "grammar")
    return InvalidRequest(f"the {name} cannot be kept: {_shortened(reason)}")


def _from_schema(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    except ValueError as error:
        raise InvalidRequest(f"the JSON schema is not valid JSON: {_shortened(error)}") from error


def _choice(source: str) -> str:
    try:
        texts = msgspec.json.decode(source, type=list[str])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest("the choice must be a list of texts") from error
    if not texts or not all(texts) or len(texts) > MAX_CHOICES:
        raise InvalidRequest(f"the choice must have 1 to {MAX_CHOICES} texts, none of them empty")
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text) for text in texts)


def _shortened(reason: object) -> str:
    line = " ".join(str(reason).replace("<non-verbose/>", "").split())
    line = line.split(" Enable '")[0]  # an option of the library, which is not the user's
    if len(line) > _MAX_MESSAGE:
        return line[:_MAX_MESSAGE] + "…"
    return line
