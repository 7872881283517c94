"""Schemas that are written in another way: the same values satisfy them."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit.engine.schemas import random_schema
from worker.engines.grammar_source import kept_text
from worker.engines.schema_rewriting import rewritten

NAMES = ("a", "b", "c", "d")
LEAVES = some.sampled_from(
    [{"type": "integer"}, {"type": "string"}, {"enum": [1, "x"]}, {"const": None}, {}, True]
)
VALUES = some.recursive(
    some.sampled_from([0, 1, 2.5, "x", "", True, None]),
    lambda inner: (
        some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner)
    ),
    max_leaves=8,
)
TYPES = some.sampled_from(["object", "array", "string", "integer", "null", "boolean"])


@some.composite
def objects(draw: Any) -> dict[str, Any]:
    names = draw(some.lists(some.sampled_from(NAMES), unique=True))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: draw(LEAVES) for name in names},
        "required": [name for name in names if draw(some.booleans())],
    }
    if draw(some.booleans()):
        schema["additionalProperties"] = False
    for key in ("minProperties", "maxProperties"):
        if draw(some.booleans()):
            schema[key] = draw(some.integers(0, 4))
    return schema


@some.composite
def others(draw: Any) -> dict[str, Any]:
    key = draw(some.sampled_from(["anyOf", "oneOf", "allOf"]))
    schema: dict[str, Any] = {key: draw(some.lists(LEAVES | objects(), min_size=1, max_size=3))}
    if draw(some.booleans()):
        schema["not"] = {"type": draw(TYPES)}
    if draw(some.booleans()):
        schema |= {"uniqueItems": True, "maxItems": draw(some.integers(0, 2))}
    return {"type": draw(TYPES), **schema} if draw(some.booleans()) else schema


@settings(max_examples=400, deadline=None)
@given(objects() | others(), VALUES)
def test_the_same_values_satisfy_it(schema: dict[str, Any], value: Any) -> None:
    before = jsonschema.Draft202012Validator(schema).is_valid(value)
    after = jsonschema.Draft202012Validator(rewritten(schema)).is_valid(value)
    assert before == after


def closed(**fields: Any) -> dict[str, Any]:
    """Three optional properties."""
    properties = {name: {"type": "integer"} for name in NAMES[:3]}
    return {"type": "object", "properties": properties, "additionalProperties": False, **fields}


@pytest.mark.parametrize(
    "schema",
    [
        closed(minProperties=1),
        closed(maxProperties=2),
        {"items": closed(minProperties=2, maxProperties=2), "type": "array"},
        {"$ref": "#/$defs/o", "$defs": {"o": closed(minProperties=1)}},
        {"anyOf": [{"type": "string"}, closed()], "not": {"type": "null"}},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "object", "properties": {"a": {}}, "required": ["a"], "minProperties": 1},
    ],
)
def test_what_is_not_taken_any_more(schema: dict[str, Any]) -> None:
    text = json.dumps(rewritten(schema))
    assert not any(word in text for word in ("minProperties", "maxProperties", "not", "unique"))


def test_what_is_taken_anyway_stays_as_it_is() -> None:
    schema = '{"type": "object",  "properties": {"not": {"const": {"minProperties": 1}}}}'
    assert kept_text(schema) == schema
    assert rewritten(True) is True


def test_it_does_not_grow_beyond_bounds() -> None:
    many = closed(properties={f"p{number}": {} for number in range(20)}, minProperties=1)
    assert rewritten(many) == many
    nested: Any = closed(minProperties=1)
    while len(json.dumps(nested)) < 200_000:  # each would be in eight places of the next
        nested = closed(properties={"a": nested, "b": nested, "c": {}}, minProperties=1)
    assert len(json.dumps(rewritten(nested))) < 10 * len(json.dumps(nested))


def test_most_random_schemas_stay_valid() -> None:
    for seed in range(200):
        jsonschema.Draft202012Validator.check_schema(rewritten(random_schema(seed)))
