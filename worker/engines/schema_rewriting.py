"""Equal schemas in place of some that llguidance does not take. Pure.

What it counts (properties, items that differ) is spelled out, what has no effect (`not` of other
values, `uniqueItems` of one item) is left out, and `oneOf` of schemas that no value satisfies
together is `anyOf`. Anything else stays, and is refused by it.
"""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from worker.engines.schema_values import Comparison, Schema, allows, values_of

MAX_ALTERNATIVES = 64  # of one object
_MAX_REWRITTEN = 32  # objects and lists that are spelled out
_MAX_PAIRS = 2048  # of schemas in `oneOf` that are compared
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
    return _Rewriter(schema).schema(schema)


class _Rewriter:
    def __init__(self, root: Any) -> None:
        self._left = _MAX_REWRITTEN
        self._pairs = _MAX_PAIRS
        self._comparison = Comparison(root)

    def schema(self, node: Any) -> Any:
        """With all that is inside of it."""
        if not isinstance(node, dict):
            return node
        inner = {key: self._inside(key, value) for key, value in node.items()}
        node = self._one_of(self._denied(_without_trivial(inner)))
        return self._counted(self._unique(node))

    def _inside(self, key: str, value: Any) -> Any:
        if key in _SCHEMAS:
            return self.schema(value)
        if key in _LISTS and isinstance(value, list):
            return [self.schema(item) for item in value]
        if key in _MAPS and isinstance(value, dict):
            return {name: self.schema(item) for name, item in value.items()}
        return value

    def _one_of(self, node: Schema) -> Schema:
        """At most one of several that exclude each other is as good as any of them."""
        parts = node.get("oneOf")
        if not isinstance(parts, list) or "anyOf" in node:
            return node
        pairs = list(itertools.combinations(parts, 2)) if len(parts) <= MAX_ALTERNATIVES else []
        self._pairs -= len(pairs)
        if self._pairs < 0 or (len(parts) > 1 and not pairs):
            return node
        if not all(self._comparison.are_disjoint(one, other) for one, other in pairs):
            return node
        return {("anyOf" if key == "oneOf" else key): value for key, value in node.items()}

    def _denied(self, node: Schema) -> Schema:
        """Without a `not` that excludes no value, or values that can be left out."""
        if "not" not in node:
            return node
        bare = {key: value for key, value in node.items() if key != "not"}
        left = self._without(bare, node["not"])
        if left is not None:
            return left
        parts = bare.get("anyOf")
        if not isinstance(parts, list):
            return node
        kept = [self._without(part, node["not"]) for part in parts]
        if None in kept:
            return node
        return {**bare, "anyOf": [part for part in kept if part is not False]}

    def _without(self, node: Any, denied: Any) -> Any:
        """The schema without the values of another one; None if that cannot be written."""
        if self._comparison.are_disjoint(node, denied):
            return node
        values = values_of(node)
        if values is None:
            return None
        verdicts = [allows(denied, value) for value in values]
        if None in verdicts:
            return None
        kept = [value for value, out in zip(values, verdicts, strict=True) if not out]
        return {"enum": kept} if kept else False

    def _unique(self, node: Schema) -> Schema:
        """A list of different items, of which there are few, as one of the lists it may be."""
        known = {"type", "items", "minItems", "maxItems", "uniqueItems", "title", "description"}
        if not node.get("uniqueItems") or node.get("type") != "array" or node.keys() - known:
            return node
        values = values_of(node.get("items"))
        least, most = node.get("minItems", 0), node.get("maxItems", MAX_ALTERNATIVES)
        if values is None or not isinstance(least, int) or not isinstance(most, int):
            return node
        counts = range(min(most, len(values)), max(0, least) - 1, -1)
        lists = sum(math.perm(len(values), count) for count in counts)
        too_large = lists * len(json.dumps(values)) > _MAX_SIZE
        if not 0 < lists <= MAX_ALTERNATIVES or too_large or self._left <= 0:
            return node
        self._left -= 1
        chosen = itertools.chain.from_iterable(
            itertools.permutations(values, count) for count in counts
        )
        return {"anyOf": list(map(_list_of, chosen))}

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
    names = node.get("required")
    least = node.get("minProperties")
    if isinstance(names, list) and isinstance(least, int) and least <= len(set(map(str, names))):
        del node["minProperties"]
    return node


def _list_of(values: Sequence[Any]) -> Schema:
    """The schema of a list of these values."""
    items = [{"const": value} for value in values]
    bounds = {"minItems": len(items), "maxItems": len(items)}
    return {"type": "array", "prefixItems": items, "items": False, **bounds}
