"""Random JSON schemas with about the spread of JSONSchemaBench: what people send, nested at random.

A seed gives the same schema always.
"""

import random
from typing import Any

Schema = dict[str, Any]
_NAMES = (
    "id",
    "name",
    "kind",
    "items",
    "value",
    "note",
    "count",
    "on",
    "größe",
    'a "b"',
    "x-y",
    "",
)
_PATTERNS = (
    "^[a-z]{2,5}$",
    "^\\d{3}-\\d{4}$",
    "^(yes|no)$",
    "^[A-F0-9]+$",
    "x",
    "^a.*z$",
    "\\w+@\\w+",
)
_FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration")
_CONSTANTS: tuple[Any, ...] = (
    0,
    -1,
    1.5,
    "a",
    "",
    'ü"\\\n',
    True,
    False,
    None,
    [],
    [1, "b"],
    {"c": {}},
)
_DEPTH = 3


def random_schema(seed: int) -> Schema:
    """Some are recursive; some use what a compiler of grammars may refuse."""
    maker = _Maker(random.Random(seed))
    schema = maker.schema(_DEPTH)
    if maker.random.random() < 0.25:
        schema = maker.recursive()
    return schema


class _Maker:
    def __init__(self, source: random.Random) -> None:
        self.random = source

    def schema(self, depth: int) -> Schema:
        kinds = [self.integer, self.number, self.string, self.literal]
        if depth > 0:
            kinds += [self.object] * 4 + [self.array] * 2 + [self.either, self.all_of]
        schema: Schema = self.random.choice(kinds)(depth)
        if self.random.random() < 0.2:
            schema = {"title": "T", "description": 'what "it" is', **schema}
        return schema

    def recursive(self) -> Schema:
        """A tree or a list, by $defs."""
        node = self.object(1)
        node["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
        if self.random.random() < 0.5:
            children = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
            node["properties"]["children"] = children
        return {"$ref": "#/$defs/node", "$defs": {"node": node}}

    def integer(self, _: int) -> Schema:
        schema: Schema = {"type": "integer"}
        if self.random.random() < 0.8:
            schema["minimum"] = self.random.randint(-200, 100)
            schema["maximum"] = schema["minimum"] + self.random.randint(0, 1000)
        elif self.random.random() < 0.5:
            schema["exclusiveMinimum"] = self.random.randint(-5, 5)
        if self.random.random() < 0.15:
            schema["multipleOf"] = self.random.choice([2, 5, 10])
            schema.pop("minimum", None)
            schema.pop("maximum", None)
        return schema

    def number(self, _: int) -> Schema:
        schema: Schema = {"type": "number"}
        if self.random.random() < 0.7:
            schema["minimum"] = round(self.random.uniform(-10, 10), 2)
            schema["maximum"] = round(schema["minimum"] + self.random.uniform(0.5, 50), 2)
        if self.random.random() < 0.2:
            schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        return schema

    def string(self, _: int) -> Schema:
        schema: Schema = {"type": "string"}
        choice = self.random.random()
        if choice < 0.3:
            schema["pattern"] = self.random.choice(_PATTERNS)
        elif choice < 0.5:
            schema["format"] = self.random.choice(_FORMATS)
        elif choice < 0.9:
            schema["maxLength"] = self.random.randint(0, 12)
            schema["minLength"] = self.random.randint(0, schema["maxLength"])
        return schema

    def literal(self, _: int) -> Schema:
        choice = self.random.random()
        if choice < 0.4:
            return {"enum": self.random.sample(_CONSTANTS, self.random.randint(1, 6))}
        if choice < 0.7:
            return {"const": self.random.choice(_CONSTANTS)}
        return {
            "type": self.random.choice(
                ["boolean", "null", ["boolean", "null"], ["integer", "null"]]
            )
        }

    def object(self, depth: int) -> Schema:
        names = self.random.sample(_NAMES, self.random.randint(0, 6))
        schema: Schema = {
            "type": "object",
            "properties": {name: self.schema(depth - 1) for name in names},
            "required": [name for name in names if self.random.random() < 0.6],
            "additionalProperties": False,
        }
        choice = self.random.random()
        if choice < 0.15:
            del schema["additionalProperties"]
        elif choice < 0.3:
            schema["additionalProperties"] = self.schema(0)
        elif choice < 0.4:
            schema["patternProperties"] = {"^p_[a-z]$": self.schema(0)}
        if self.random.random() < 0.07:
            schema["minProperties"] = self.random.randint(1, 3)
        if self.random.random() < 0.07:
            schema["maxProperties"] = self.random.randint(3, 6)
        return schema

    def array(self, depth: int) -> Schema:
        schema: Schema = {"type": "array", "items": self.schema(depth - 1)}
        schema["minItems"] = self.random.randint(0, 2)
        schema["maxItems"] = schema["minItems"] + self.random.randint(0, 3)
        choice = self.random.random()
        if choice < 0.15:
            schema["prefixItems"] = [self.schema(depth - 1), self.schema(0)]
        elif choice < 0.22:
            schema["uniqueItems"] = True
        return schema

    def either(self, depth: int) -> Schema:
        key = self.random.choice(["anyOf", "anyOf", "oneOf"])
        schema: Schema = {key: [self.schema(depth - 1) for _ in range(self.random.randint(1, 3))]}
        if self.random.random() < 0.1:
            schema["not"] = self.schema(0)
        return schema

    def all_of(self, depth: int) -> Schema:
        """Of objects, as those who extend a base do; now and then one that contradicts itself."""
        if self.random.random() < 0.3:
            return {"allOf": [self.schema(depth - 1), self.schema(depth - 1)]}
        parts = [self.object(depth - 1) for _ in range(2)]
        for part in parts:
            part["additionalProperties"] = True
        return {"allOf": parts}
