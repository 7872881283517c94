"""The OpenAPI document: ninja's, and every status that an endpoint may refuse with.

Which these are follows from what the document says of the endpoint: who may call it, and whether it has a body or a
name in its address. What only its view knows, it says with `openapi_extra`: SUBMITS_A_JOB or `refuses(...)`.
"""

from http.client import responses
from typing import Any

from ninja import NinjaAPI

from api.openai.addresses import is_openais

_REFUSES = "x-refuses"
_BY_ANYBODY = (400, 500, 503)
_BY_SECURITY = {"Key": (401,), "Member": (401, 403), "Staff": (401, 403), "Anyone": (403,)}
_BY_BODY = (408, 413, 415)
_BY_ADDRESS = (404,)

SUBMITS_A_JOB: dict[str, Any] = {
    _REFUSES: [404, 422, 429, 504],
    "parameters": [
        {"in": "header", "name": "Idempotency-Key", "schema": {"type": "string", "minLength": 1, "maxLength": 255}},
        {"in": "header", "name": "X-Canopy-Deadline", "schema": {"type": "number", "exclusiveMinimum": 0}},
    ],
}  # `openapi_extra` of an endpoint that answers with a job's answer

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
SCHEMAS = {
    "Refusal": {"message": _TEXT, "field": _TEXT_OR_NULL},
    "OpenAIRefusal": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
}


def refuses(*statuses: int) -> dict[str, Any]:
    """`openapi_extra` of an endpoint whose view refuses with these, too."""
    return {_REFUSES: list(statuses)}


class DocumentedAPI(NinjaAPI):
    """See the module."""

    def get_openapi_schema(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The whole document."""
        document = super().get_openapi_schema(**options)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                add_refusals(path, operation)
        document["components"]["schemas"] |= {name: _error_schema(fields) for name, fields in SCHEMAS.items()}
        return document


def add_refusals(path: str, operation: dict[str, Any]) -> None:
    """Adds what the operation may refuse with to its responses."""
    statuses = {*_BY_ANYBODY, *operation.pop(_REFUSES, ())}
    for scheme in operation.get("security", ()):
        for name in scheme:
            statuses.update(_BY_SECURITY[name])
    if "requestBody" in operation:
        statuses.update(_BY_BODY)
    if any(parameter["in"] == "path" for parameter in operation["parameters"]):
        statuses.update(_BY_ADDRESS)
    shape = "OpenAIRefusal" if is_openais(path) else "Refusal"
    for status in sorted(statuses):
        operation["responses"].setdefault(status, _refusal(status, shape))


def _refusal(status: int, shape: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{shape}"}
    return {"description": responses[status], "content": {"application/json": {"schema": schema}}}


def _error_schema(fields: dict[str, Any]) -> dict[str, Any]:
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}
