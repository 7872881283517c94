"""Random requests from the OpenAPI document: right ones, mutated ones, and nonsense.

Faster than schemathesis, whose cases test_api_document.py sends: a seed gives thousands a minute.
"""

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
WORDS = ("maple", "a b c", "ünï", "日本語", "🙂", "x" * 3000, "\u202eabc", "e\u0301", "null", "0")
JUNK: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, -0.0, 5e-324, 0.5),
    *("", " ", "\x00", "a\x00b", "\ud800", "%00", "../../etc/passwd", "' OR 1=1 --", "{{7*7}}"),
    *("2024-13-45T25:61:61Z", "-1", "1e400", "NaN", "true", "a" * 70_000, "\n", "\ufeff"),
    *([], {}, [None], [[[]]], {"": ""}, {"$ref": "#"}, {"__proto__": 1}, DEEP, [1] * 5000),
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "NONSENSE")
_HEADERS = {
    "Idempotency-Key": ("same", "", "x" * 300, "ü"),
    "X-Canopy-Deadline": ("1", "0", "-1", "nan", "inf", "1e999", "x"),
    "Accept": ("text/event-stream", "*/*", "image/png", ""),
    "Last-Event-ID": ("0", "-1", "99999999999999999999", "x"),
    "Content-Encoding": ("gzip", "br", "identity"),
    "Range": ("bytes=0-3", "bytes=-1", "x"),
    "X-Request-ID": ("x" * 500, "a b", ""),
    "anthropic-version": ("2023-06-01", ""),
    "If-None-Match": ("*", '"x"'),
}
_CONTENT_TYPES = ("application/json", "text/plain", "multipart/form-data", "x", "")


@dataclass(slots=True)
class Request:
    """What is sent."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One of the document's."""

    method: str
    path: str
    definition: Mapping[str, Any]

    @property
    def label(self) -> str:
        """As schemathesis names it."""
        return f"{self.method} {self.path}"


def operations(document: Mapping[str, Any]) -> list[Operation]:
    """All of the document."""
    return [
        Operation(method.upper(), path, definition)
        for path, methods in document["paths"].items()
        for method, definition in methods.items()
    ]


class Fuzzer:
    """Makes requests. `ids`: of things that there are, whoever has them."""

    def __init__(self, document: Mapping[str, Any], seed: int) -> None:
        self.random = random.Random(seed)
        self.ids: list[str] = []
        self._document = document

    def request(self, operation: Operation) -> Request:
        """Of the operation, a third of them as the document wants it."""
        wrong = self.random.random() < 0.67
        method = operation.method
        if wrong and self._sometimes(0.05):
            method = self.random.choice(METHODS)
        made = Request(method, self._path(operation, wrong))
        self._add_body(made, operation, wrong)
        if wrong:
            self._add_headers(made)
        return made

    def _sometimes(self, share: float) -> bool:
        return self.random.random() < share

    def _path(self, operation: Operation, wrong: bool) -> str:
        path, query = operation.path, []
        for parameter in operation.definition["parameters"]:
            name, place = parameter["name"], parameter["in"]
            if place == "path":
                path = path.replace(f"{{{name}}}", quote(self._name(name, wrong), safe=""))
            elif place == "query" and self._sometimes(0.4):
                value = self._text(self._parameter(parameter["schema"], wrong))
                query.append(f"{quote(name)}={quote(value)}")
        return f"{path}?{'&'.join(query)}" if query else path

    def _name(self, parameter: str, wrong: bool) -> str:
        if wrong and self._sometimes(0.2):
            return self._text(self.random.choice(JUNK))[:2000]
        prefix = parameter.removesuffix("_id")
        fitting = [each for each in self.ids if each.startswith(prefix)]
        if parameter in {"number", "message"}:
            fitting = [each for each in self.ids if each.isdigit()]
        return self.random.choice(fitting or self.ids or ["1"])

    def _parameter(self, schema: Mapping[str, Any], wrong: bool) -> Any:
        if self._sometimes(0.3):
            return self.random.choice(self.ids or ["1"])
        if wrong and self._sometimes(0.5):
            return self.random.choice(JUNK)
        return self.value(schema)

    @staticmethod
    def _text(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return text.encode("utf-8", "replace").decode()[:5000]

    def _add_body(self, made: Request, operation: Operation, wrong: bool) -> None:
        content = operation.definition.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            body = self.value(content["application/json"]["schema"])
            for _ in range(self.random.randint(1, 3) if wrong else 0):
                body = self._mutated(body)
            made.content = json.dumps(body).encode()
            made.headers["Content-Type"] = "application/json"
        elif content:
            made.content = _form(self._text(self.value({"type": "string"})))
            made.headers["Content-Type"] = "multipart/form-data; boundary=cut"
        elif wrong and self._sometimes(0.2):
            made.content = b'{"unexpected": 1}'
        if wrong and self._sometimes(0.15):
            made.content = self._damaged(made.content)

    def _damaged(self, content: bytes) -> bytes:
        cut = self.random.randrange(len(content) + 1)
        noise = self.random.randbytes(3)
        return self.random.choice((content[:cut], content[:cut] + noise + content[cut:], noise))

    def _add_headers(self, made: Request) -> None:
        for name, values in _HEADERS.items():
            if self._sometimes(0.06):
                made.headers[name] = self.random.choice(values)
        if self._sometimes(0.05):
            made.headers["Content-Type"] = self.random.choice(_CONTENT_TYPES)

    # ---- values

    def value(self, schema: Any, depth: int = 0) -> Any:
        """A value that the schema allows, or nearly so."""
        if not isinstance(schema, Mapping):
            return self.random.choice(WORDS)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self.value(self._document["components"]["schemas"][name], depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.value(self.random.choice(schema[several]), depth)
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "string")
        if isinstance(kind, list):
            kind = self.random.choice(kind)
        makers: dict[str, Callable[[Mapping[str, Any], int], Any]] = {
            "object": self._object,
            "array": self._array,
            "integer": self._integer,
            "number": self._number,
            "string": self._string,
        }
        if kind in makers:
            return makers[kind](schema, depth)
        return self._sometimes(0.5) if kind == "boolean" else None

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        made = {}
        share = 0.25 if depth < 5 else 0.0
        for name, each in schema.get("properties", {}).items():
            if name in schema.get("required", ()) or self._sometimes(share):
                made[name] = self._property(name, each, depth)
        return made

    def _property(self, name: str, schema: Any, depth: int) -> Any:
        if name == "model" and self._sometimes(0.8):
            return "tiny"
        if name.endswith(("id", "ids", "numbers", "after", "head")) and self._sometimes(0.5):
            return self.random.choice(self.ids or ["1"])
        return self.value(schema, depth + 1)

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        more = self.random.randint(0, 3) if depth < 5 else 0
        count = min(least + more, schema.get("maxItems", least + more))
        return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]

    def _integer(self, schema: Mapping[str, Any], _: int) -> int:
        least, most = int(schema.get("minimum", 0)), int(schema.get("maximum", 50))
        return self.random.choice((least, most, self.random.randint(least, max(least, most))))

    def _number(self, schema: Mapping[str, Any], _: int) -> float:
        least, most = schema.get("minimum", 0.0), schema.get("maximum", 2.0)
        return self.random.choice((least, most, self.random.uniform(least, most)))

    def _string(self, schema: Mapping[str, Any], _: int) -> str:
        if schema.get("format") == "date-time":
            return "2026-01-02T03:04:05Z"
        text = self.random.choice(WORDS)
        return text[: schema.get("maxLength", len(text))]

    # ---- mutations

    def _mutated(self, body: Any) -> Any:
        body = copy.deepcopy(body)
        places = list(_places(body))
        if not places or self._sometimes(0.05):
            return self.random.choice(JUNK)
        holder, key = self.random.choice(places)
        how = self.random.random()
        if how < 0.15:
            del holder[key]
        elif how < 0.25 and isinstance(holder, dict):
            holder[self._text(self.random.choice(JUNK))[:50]] = self.random.choice(JUNK)
        elif how < 0.4 and self.ids:
            holder[key] = self.random.choice(self.ids)
        else:
            holder[key] = self.random.choice(JUNK)
        return body


def _places(body: Any) -> Sequence[tuple[Any, Any]]:
    """Every value of a document, as what holds it and its key there."""
    places: list[tuple[Any, Any]] = []
    holders = [body]
    while holders and len(places) < 1000:
        holder = holders.pop()
        if isinstance(holder, dict):
            keys: Sequence[Any] = list(holder)
        elif isinstance(holder, list):
            keys = range(len(holder))
        else:
            continue
        for key in keys:
            places.append((holder, key))
            holders.append(holder[key])
    return places


def _form(text: str) -> bytes:
    disposition = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    parts = [
        disposition.format("purpose", "", "batch"),
        disposition.format("file", '; filename="a.jsonl"', text),
    ]
    return "".join(f"--cut\r\n{part}" for part in parts).encode() + b"--cut--\r\n"
