"""Schemas that are written in another way: the same values satisfy them."""

import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from broker.wire import Grammar
from tests.unit.engine.schemas import random_schema
from worker.engines.echo_instance import instance
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


BOUNDS = some.integers(-2, 4)
RANGES = [("number", "minimum", "maximum"), ("integer", "exclusiveMinimum", "maximum")]
RANGES += [("string", "minLength", "maxLength"), ("array", "minItems", "maxItems")]
CONSTANTS = [0, 1, 1.0, True, False, None, "", "x", [], [0], {}, {"a": 1}]


@some.composite
def plain(draw: Any) -> dict[str, Any]:
    """What two of may or may not have values in common."""
    kind, low, high = draw(some.sampled_from(RANGES))
    ranged = {"type": kind, low: draw(BOUNDS), high: draw(BOUNDS)}
    listed = {"enum": draw(some.lists(some.sampled_from(CONSTANTS), min_size=1, max_size=4))}
    constant = {"const": draw(some.sampled_from(CONSTANTS))}
    typed = {"type": draw(TYPES)}
    shape = draw(some.sampled_from([ranged, listed, constant, typed, {**listed, **typed}, True]))
    if draw(some.booleans()):
        return {"title": "T", **shape} if isinstance(shape, dict) else {}
    return {
        "type": "object",
        "properties": {"a": shape, "b": draw(LEAVES)},
        "required": draw(some.lists(some.sampled_from(NAMES[:3]), unique=True)),
        "additionalProperties": draw(some.booleans()),
    }


@some.composite
def choices(draw: Any) -> dict[str, Any]:
    """Of schemas, some by reference, of which one must be satisfied, or none."""
    shapes = draw(some.lists(plain() | LEAVES, min_size=1, max_size=3))
    named = {f"d{index}": shape for index, shape in enumerate(shapes)}
    parts = [
        {"$ref": f"#/$defs/{name}"} if draw(some.booleans()) else named[name] for name in named
    ]
    schema: dict[str, Any] = {"$defs": named, draw(some.sampled_from(["anyOf", "oneOf"])): parts}
    if draw(some.booleans()):
        schema["not"] = draw(plain() | LEAVES)
    return schema


@some.composite
def unique_lists(draw: Any) -> dict[str, Any]:
    schema = {"type": "array", "uniqueItems": True, "items": draw(plain())}
    for key in ("minItems", "maxItems"):
        if draw(some.booleans()):
            schema[key] = draw(some.integers(0, 3))
    return schema


@settings(max_examples=600, deadline=None)
@given(objects() | others() | choices() | unique_lists() | plain(), VALUES)
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


CAT = closed(required=["kind"], properties={"kind": {"const": "cat"}, "lives": {}})
DOG = closed(required=["kind"], properties={"kind": {"enum": ["dog", "wolf"]}, "name": {}})
DEFINITIONS = {"$defs": {"cat": CAT, "dog": DOG}}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]} | DEFINITIONS,
        {"oneOf": [{"$ref": "#/$defs/cat"}, {"type": "null"}]} | DEFINITIONS,
        {"oneOf": [{"const": 1}, {"const": 2}, {"const": True}]},
        {"oneOf": [{"type": "number", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}]},
        {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "string", "minLength": 4}]},
        {"enum": ["a", "b"], "not": {"const": "a"}},
        {"anyOf": [{"type": "boolean"}, {"type": "string"}], "not": {"const": False}},
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
    ],
)
def test_schemas_of_people_are_kept(schema: dict[str, Any]) -> None:
    """pydantic writes the first for a union with a discriminator, and the last for a set."""
    assert "oneOf" not in rewritten(schema) and "not" not in rewritten(schema)
    text = instance(Grammar(kind="json_schema", source=json.dumps(schema)))
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [{"const": 1}, {"const": 1.0}]},
        {"oneOf": [{"$ref": "#"}, {"$ref": "#/$defs/nowhere"}]},
        {"type": "string", "not": {"const": "a"}},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "array", "items": {"enum": list(range(9))}, "uniqueItems": True},
    ],
)
def test_what_cannot_be_kept_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert rewritten(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"enum": list(range(i, 256 * 60, 60))} for i in range(60)]},
        {"oneOf": [{"enum": list(range(10_000))}, {"enum": list(range(5_000, 15_000))}]},
        {"anyOf": [{"enum": list(range(9_000))}], "not": {"enum": list(range(9_000))}},
        {"oneOf": [{"anyOf": [{"$ref": "#"}, {"oneOf": [{"$ref": "#"}] * 8}]}] * 40},
        {"items": {"enum": [["x" * 9000], 1, 2]}, "type": "array", "uniqueItems": True},
        {"items": {"enum": [1, 2]}, "minItems": -5, "type": "array", "uniqueItems": True},
        {"$ref": "#", "oneOf": [{"$ref": "#", "allOf": [{"$ref": "#"}] * 9}] * 64},
    ],
    ids=["listed", "long", "denied", "circles", "texts", "negative", "nested"],
)
def test_no_schema_takes_long(schema: dict[str, Any]) -> None:
    started = time.process_time()
    rewritten(schema)
    assert time.process_time() - started < 3.0
