"""A request's grammar in llguidance's own form, or the reason why it is refused. Pure."""

import json
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits

from broker.wire import Grammar
from worker.engines import gbnf
from worker.engines.base import InvalidRequest
from worker.engines.schema_rewriting import rewritten

MAX_SOURCE = 256 * 1024  # bytes
MAX_CHOICES = 10_000
_MAX_MESSAGE = 500  # characters of llguidance's explanation

# Last in line, so that no "x-guidance" in a schema loosens them. White space is bounded: a weak
# model would go on with it for ever.
JSON_OPTIONS: Any = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"[\x20\x0A]{1,32}",
    "coerce_one_of": False,
    "lenient": False,
}

# Of one step, of the whole lexer, of the whole grammar: well above what the schemas of people need.
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "step_max_items": 10_000,
    "step_lexer_fuel": 50_000,
    "initial_lexer_fuel": 500_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
}


class Unsatisfiable(Exception):
    """A grammar that llguidance does not take, or that no text satisfies; the message says why."""


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
    return LLMatcher.grammar_from_lark(_lark(grammar.source))


def refusal(grammar: Grammar, reason: str) -> InvalidRequest:
    """With llguidance's reason, which may have several lines."""
    names = {"json_schema": "JSON schema", "json_object": "JSON", "regex": "regular expression"}
    name = names.get(grammar.kind, "grammar")
    return InvalidRequest(f"the {name} cannot be kept: {_shortened(reason)}")


def parser_limits() -> LLParserLimits:
    """So that neither compiling nor a step can take long."""
    return LLParserLimits(verbose_errors=False, **_LIMITS)


def why_stopped(matcher: LLMatcher) -> str:
    """Before the first token."""
    reason = matcher.get_error() or matcher.stop_reason()
    if reason.startswith("NoExtension"):
        return "no text satisfies it"
    return reason


def _from_schema(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(kept_text(schema), overrides=JSON_OPTIONS)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is not valid JSON: {_shortened(error)}") from error


def kept_text(schema: str) -> str:
    """The schema as llguidance takes it. Raises InvalidRequest, ValueError, RecursionError."""
    decoded = msgspec.json.decode(schema)
    simpler = rewritten(decoded)
    _check_schema(simpler)
    return schema if simpler == decoded else json.dumps(simpler)


def _check_schema(node: Any) -> None:
    """Refuses what llguidance takes but does not keep: it counts a name that comes twice as two
    properties. Raises InvalidRequest, RecursionError.
    """
    if isinstance(node, list):
        for item in node:
            _check_schema(item)
    if not isinstance(node, dict):
        return
    least = node.get("minProperties")
    if isinstance(least, int | float) and least > 1:
        names = node.get("required")
        required = len(names) if isinstance(names, list) else 0
        closed = node.get("additionalProperties") is False and not node.get("patternProperties")
        if required < least and not closed:
            raise InvalidRequest(
                "the JSON schema cannot be kept: minProperties beside properties of any name"
            )
    for value in node.values():
        _check_schema(value)


def _lark(source: str) -> str:
    if not gbnf.is_gbnf(source):
        return source
    try:
        return gbnf.as_lark(source)
    except gbnf.InvalidGBNF as error:
        raise InvalidRequest(f"the GBNF grammar cannot be read: {_shortened(error)}") from error


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
