"""Equal schemas in place of some that llguidance does not take. Pure.

What it counts (properties) is spelled out, what has no effect (`not` of another type, `uniqueItems`
of one item) is left out. Anything else stays, and is refused by it.
"""

import itertools
import json
from typing import Any

Schema = dict[str, Any]

MAX_ALTERNATIVES = 64  # of one object
_MAX_REWRITTEN = 32  # objects that are spelled out
_MAX_SIZE = 32 * 1024  # characters of one of them: each may be in each of another
_SCHEMAS = (
    "items",
    "additionalProperties",
    "not",
    "contains",
    "propertyNames",
    "if",
    "then",
    "else",
)
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COUNTS = ("minProperties", "maxProperties")


def rewritten(schema: Any) -> Any:
    """A schema that the same values satisfy."""
    return _Rewriter().schema(schema)


class _Rewriter:
    def __init__(self) -> None:
        self._left = _MAX_REWRITTEN

    def schema(self, node: Any) -> Any:
        """With all that is inside of it."""
        if not isinstance(node, dict):
            return node
        inner = {key: self._inside(key, value) for key, value in node.items()}
        return self._counted(_without_trivial(inner))

    def _inside(self, key: str, value: Any) -> Any:
        if key in _SCHEMAS:
            return self.schema(value)
        if key in _LISTS and isinstance(value, list):
            return [self.schema(item) for item in value]
        if key in _MAPS and isinstance(value, dict):
            return {name: self.schema(item) for name, item in value.items()}
        return value

    def _counted(self, node: Schema) -> Schema:
        """An object with a number of properties, as one of objects that have certain ones."""
        if not any(name in node for name in _COUNTS):
            return node
        sets = _property_sets(node)
        if not sets or self._left <= 0 or len(sets) * len(json.dumps(node)) > _MAX_SIZE:
            return node
        properties = node["properties"]
        bare: Schema = {key: value for key, value in node.items() if key not in _COUNTS}
        if len(sets) == len(_choices(node)):
            return bare  # any number of them is allowed
        self._left -= 1
        shared: Schema = {key: bare.pop(key) for key in ("$defs", "definitions") if key in bare}
        alternatives: list[Schema] = []
        for chosen in sets:
            kept = {name: value for name, value in properties.items() if name in chosen}
            alternatives.append({**bare, "properties": kept, "required": list(kept)})
        return {"anyOf": alternatives, **shared}


def _property_sets(node: Schema) -> list[frozenset[str]] | None:
    """Which properties an object may have together; None if that cannot be told."""
    properties, required = node.get("properties"), node.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or not _is_closed(node):
        return None
    if not set(map(str, required)) <= set(properties):
        return None
    if 2 ** (len(properties) - len(set(required))) > MAX_ALTERNATIVES:
        return None
    least, most = node.get("minProperties", 0), node.get("maxProperties", len(properties))
    if not isinstance(least, int) or not isinstance(most, int):
        return None
    return [chosen for chosen in _choices(node) if least <= len(chosen) <= most]


def _is_closed(node: Schema) -> bool:
    """Whether it is an object with no properties but those that are named."""
    if node.get("type") != "object" or node.get("additionalProperties") is not False:
        return False
    return not any(
        node.get(key) for key in ("patternProperties", "dependentSchemas", "dependentRequired")
    )


def _choices(node: Schema) -> list[frozenset[str]]:
    """The required properties with each choice of the others, the most of them first."""
    required = frozenset(node.get("required", []))
    others = [name for name in node["properties"] if name not in required]
    chosen: list[frozenset[str]] = []
    for count in range(len(others), -1, -1):
        chosen += [required.union(some) for some in itertools.combinations(others, count)]
    return chosen


def _without_trivial(node: Schema) -> Schema:
    """Without what no value can break."""
    node = dict(node)
    if node.get("uniqueItems") and node.get("maxItems", 2) in (0, 1):
        del node["uniqueItems"]
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]
    if "not" in node and _types(node).isdisjoint(_types(node["not"])):
        del node["not"]
    names = node.get("required")
    least = node.get("minProperties")
    if isinstance(names, list) and isinstance(least, int) and least <= len(set(map(str, names))):
        del node["minProperties"]
    return node


_ALL_TYPES = frozenset(["string", "number", "boolean", "null", "array", "object"])


def _types(node: Any) -> frozenset[str]:
    """The types of values that may satisfy the schema, or more of them."""
    if node is False:
        return frozenset()
    if not isinstance(node, dict) or "$ref" in node or "$dynamicRef" in node:
        return _ALL_TYPES
    found = _ALL_TYPES
    if "type" in node:
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        found &= {"number" if kind == "integer" else str(kind) for kind in kinds}
    if "const" in node:
        found &= {_type_of(node["const"])}
    if isinstance(node.get("enum"), list):
        found &= set(map(_type_of, node["enum"]))
    for key in ("anyOf", "oneOf"):
        if isinstance(node.get(key), list):
            found &= frozenset().union(*map(_types, node[key]))
    return found


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
