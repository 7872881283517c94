"""Which values JSON schemas allow, as far as that is easily told. Pure.

A schema is all of its keywords together, so one of them is enough to exclude a value, or to keep
the values of two schemas apart.
"""

from typing import Any

Schema = dict[str, Any]

ALL_TYPES = frozenset(["string", "number", "boolean", "null", "array", "object"])
_ANNOTATIONS = frozenset(["title", "description", "default", "examples", "$comment", "deprecated"])
_VALUES: dict[str, list[Any]] = {"null": [None], "boolean": [False, True]}
_MOST_STEPS = 50_000  # of all questions: comparisons of two schemas, or of two values
_MOST_VALUES = 256  # that are listed
_DEEPEST = 16  # references may lead in a circle


def type_of(value: Any) -> str:
    """The JSON type of a value; an integer is a number."""
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


def is_same(one: Any, other: Any) -> bool:
    """Whether JSON calls them equal: 1 and 1.0 are, 1 and true are not."""
    if type_of(one) != type_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return bool(one == other)


def values_of(node: Any) -> list[Any] | None:
    """All values that the schema allows, each once; None if they cannot be listed."""
    if not isinstance(node, dict) or not node.keys() - _ANNOTATIONS <= {"type", "const", "enum"}:
        return None
    if "const" in node:
        listed = [node["const"]]
    elif isinstance(node.get("enum"), list):
        listed = node["enum"]
        if len(listed) > _MOST_VALUES:
            return None
    else:
        kinds = node.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not kinds or not all(isinstance(kind, str) and kind in _VALUES for kind in kinds):
            return None
        listed = [value for kind in kinds for value in _VALUES[kind]]
    found: list[Any] = []
    for value in listed:
        fits = not any(is_same(value, other) for other in found) and allows(node, value)
        if fits:
            found.append(value)
    return found


def allows(node: Any, value: Any) -> bool | None:
    """Whether a schema of `type`, `const` and `enum` allows the value; None for another schema."""
    if isinstance(node, bool):
        return node
    if not isinstance(node, dict) or not node.keys() - _ANNOTATIONS <= {"type", "const", "enum"}:
        return None
    if "const" in node and not is_same(node["const"], value):
        return False
    enum = node.get("enum")
    if isinstance(enum, list) and len(enum) > _MOST_VALUES:
        return None
    if isinstance(enum, list) and not any(is_same(value, other) for other in enum):
        return False
    return "type" not in node or _is_of_type(value, node["type"])


def _is_of_type(value: Any, kinds: Any) -> bool:
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind == "integer":
            if type_of(value) == "number" and float(value).is_integer():
                return True
        elif kind == type_of(value):
            return True
    return False


class Comparison:
    """Answers questions about schemas inside of `root`, whose references it follows.

    After many steps it knows nothing more: all questions together take less than a second.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = 0

    def are_disjoint(self, one: Any, other: Any) -> bool:
        """True if certainly no value satisfies both."""
        return self._disjoint(one, other, 0)

    def _disjoint(self, one: Any, other: Any, depth: int) -> bool:
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST_STEPS:
            return False
        if one is False or other is False:
            return True
        if not isinstance(one, dict) or not isinstance(other, dict):
            return False
        if _types(one).isdisjoint(_types(other)):
            return True
        return (
            self._inside(one, other, depth)
            or self._inside(other, one, depth)
            or self._by_values(one, other)
            or _by_bounds(one, other)
            or self._by_properties(one, other, depth)
            or self._by_properties(other, one, depth)
        )

    def _inside(self, one: Schema, other: Any, depth: int) -> bool:
        """By what `one` refers to, or is made of."""
        if "$ref" in one and self._disjoint(self._resolved(one["$ref"]), other, depth + 1):
            return True
        for key in ("anyOf", "oneOf"):
            parts = one.get(key)
            if not isinstance(parts, list) or not parts:
                continue
            if all(self._disjoint(part, other, depth + 1) for part in parts):
                return True
        parts = one.get("allOf")
        if not isinstance(parts, list):
            return False
        return any(self._disjoint(part, other, depth + 1) for part in parts)

    def _resolved(self, reference: Any) -> Any:
        """True, which any value satisfies, for a reference that leads elsewhere."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        found = self._root
        for part in reference[1:].split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                return True
            found = found[name]
        return found

    def _by_values(self, one: Schema, other: Schema) -> bool:
        for listed, schema in ((one, other), (other, one)):
            plain, known = _listing(listed), _listing(schema)
            self._steps += _length(plain) * (_length(plain) + _length(known))
            if self._steps > _MOST_STEPS:
                return False
            values = values_of(plain)
            if values is not None and all(allows(known, value) is False for value in values):
                return True
        return False

    def _by_properties(self, one: Schema, other: Schema, depth: int) -> bool:
        """By a property that `one` must have, and that `other` has with other values, or not."""
        if _types(one) != {"object"} or _types(other) != {"object"}:
            return False
        required = one.get("required")
        if not isinstance(required, list):
            return False
        mine, others = _properties(one), _properties(other)
        for name in required:
            if not isinstance(name, str):
                continue
            if name in others:
                if self._disjoint(mine.get(name, True), others[name], depth + 1):
                    return True
            elif other.get("additionalProperties") is False and not other.get("patternProperties"):
                return True
        return False


def _listing(node: Schema) -> Schema:
    """The keywords by which it may list its values."""
    return {key: node[key] for key in ("type", "const", "enum") if key in node}


def _length(node: Schema) -> int:
    """How many values it lists."""
    enum = node.get("enum")
    return min(len(enum), _MOST_VALUES) if isinstance(enum, list) else 1


def _properties(node: Schema) -> Schema:
    properties = node.get("properties")
    return properties if isinstance(properties, dict) else {}


def _types(node: Schema) -> frozenset[str]:
    """The types that its own keywords leave."""
    found = ALL_TYPES
    if "type" in node:
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        found &= {"number" if kind == "integer" else str(kind) for kind in kinds}
    if "const" in node:
        found &= {type_of(node["const"])}
    if isinstance(node.get("enum"), list):
        found &= set(map(type_of, node["enum"]))
    return found


_BOUNDS = (
    ("number", "minimum", "maximum"),
    ("string", "minLength", "maxLength"),
    ("array", "minItems", "maxItems"),
)


def _by_bounds(one: Schema, other: Schema) -> bool:
    """Numbers of different ranges, or texts or lists of different lengths."""
    common = _types(one) & _types(other)
    for kind, low, high in _BOUNDS:
        if common == {kind}:
            return _above(one, other, low, high) or _above(other, one, low, high)
    return False


def _above(one: Schema, other: Schema, low: str, high: str) -> bool:
    least, most = _number(one.get(low)), _number(other.get(high))
    if least is not None and most is not None and least > most:
        return True
    if low != "minimum":
        return False
    over, under = _number(one.get("exclusiveMinimum")), _number(other.get("exclusiveMaximum"))
    return (
        (over is not None and most is not None and over >= most)
        or (least is not None and under is not None and least >= under)
        or (over is not None and under is not None and over >= under)
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else None
