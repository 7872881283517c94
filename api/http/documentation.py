"""The OpenAPI document: ninja's, with every error status of each operation.

Most follow from the document itself: who may call the operation, and whether it has a body or path
parameters. A view declares others with `openapi_extra`: JOB_OPERATION or `error_statuses(...)`.
"""

from http.client import responses
from typing import Any

from django.conf import settings
from ninja import NinjaAPI

from api.http.answers import ANSWERS
from api.http.examples import EXAMPLES
from api.openai.addresses import Family, family

_EXTENSION = "x-error-statuses"
_ALWAYS = (400, 408, 413, 414, 429, 431, 500, 503)  # most of them: api/server/refusals.py
_WITH_SECURITY = {
    "Key": (401,),
    "Member": (401, 403),
    "Session": (401, 403),
    "Staff": (401, 403),
    "Administrator": (401, 403),
    "Anyone": (401, 403),
}
_WITH_BODY = (415,)
_WITH_PATH_PARAMETER = (404,)

# `openapi_extra` of an operation that submits a job and returns its answer.
JOB_OPERATION: dict[str, Any] = {
    _EXTENSION: [403, 404, 422, 504],
    "parameters": [
        {
            "in": "header",
            "name": "Idempotency-Key",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        },
        {
            "in": "header",
            "name": "X-Canopy-Deadline",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
    ],
}

_FIRST_ERROR = 400
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR_SCHEMAS: dict[Family, str] = {
    "canopy": "Error",
    "openai": "OpenAIError",
    "anthropic": "AnthropicError",
}
_ERROR_FIELDS: dict[str, dict[str, Any]] = {
    "Error": {
        "message": _TEXT,
        "field": _TEXT_OR_NULL,
        "code": _TEXT,
        "params": {"type": "object"},
    },
    "OpenAIError": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
    "AnthropicError": {"type": _TEXT, "message": _TEXT},
}


def error_statuses(*statuses: int) -> dict[str, Any]:
    """`openapi_extra` of an operation whose view also raises ApiError with these statuses."""
    return {_EXTENSION: list(statuses)}


class DocumentedAPI(NinjaAPI):
    """An API whose document lists all error statuses."""

    def get_openapi_schema(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The whole document."""
        options.setdefault("path_prefix", "")  # it would be the base path, which is in `servers`
        document = super().get_openapi_schema(**options)
        if settings.ENV.address is not None:
            document["servers"] = [{"url": settings.ENV.address}]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                add_error_responses(path, operation)
                _add_example(f"{method.upper()} {path}", operation)
                _add_answers(f"{method.upper()} {path}", operation)
        _name_bounds(document)
        schemas = document["components"]["schemas"]
        for name, fields in _ERROR_FIELDS.items():
            schemas[name] = _error_schema(fields)
        return document


def add_error_responses(path: str, operation: dict[str, Any]) -> None:
    """Adds the responses that are errors to one operation of the document."""
    statuses = {*_ALWAYS, *operation.pop(_EXTENSION, ())}
    for scheme in operation.get("security", ()):
        for name in scheme:
            statuses.update(_WITH_SECURITY[name])
    if "requestBody" in operation:
        statuses.update(_WITH_BODY)
    if any(parameter["in"] == "path" for parameter in operation["parameters"]):
        statuses.update(_WITH_PATH_PARAMETER)
    schema = _ERROR_SCHEMAS[family(path)]
    for status in sorted(statuses):
        operation["responses"].setdefault(status, _error_response(status, schema))


def _add_example(label: str, operation: dict[str, Any]) -> None:
    content = operation.get("requestBody", {}).get("content", {})
    if label in EXAMPLES:
        content["application/json"]["example"] = EXAMPLES[label]


def _add_answers(label: str, operation: dict[str, Any]) -> None:
    """What a view that makes its own response answers with."""
    content = ANSWERS.get(label)
    if content is not None:
        success = min(status for status in operation["responses"] if status < _FIRST_ERROR)
        operation["responses"][success].setdefault("content", {}).update(content)


def _name_bounds(part: Any) -> None:
    """Pydantic leaves its own names where a validator stands before the bounds (Integer)."""
    if isinstance(part, list):
        for each in part:
            _name_bounds(each)
    if not isinstance(part, dict):
        return
    for ours, theirs in _BOUNDS.items():
        if ours in part and part.get("type") in ("integer", "number"):
            part[theirs] = part.pop(ours)
    for each in part.values():
        _name_bounds(each)


def _error_response(status: int, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": responses[status], "content": content}


def _error_schema(fields: dict[str, Any]) -> dict[str, Any]:
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}
