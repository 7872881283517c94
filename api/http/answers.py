"""What operations answer whose views make their own responses: content types and schemas."""

from typing import Any

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_OBJECT = {"type": "object"}
_LIST = {"type": "array"}
_EVENTS = {"text/event-stream": {"schema": _TEXT}}


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _kind(name: str) -> dict[str, Any]:
    return {"type": "string", "enum": [name]}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_MODEL = _object(id=_TEXT, object=_kind("model"), created=_COUNT, owned_by=_TEXT)
_USAGE = _object(prompt_tokens=_COUNT, total_tokens=_COUNT)
_TEXT_CHOICE = _object(index=_COUNT, text=_TEXT, finish_reason=_TEXT_OR_NULL)
_CHAT_MESSAGE = _object(role=_TEXT, content=_TEXT_OR_NULL)
_CHAT_CHOICE = _object(index=_COUNT, message=_CHAT_MESSAGE, finish_reason=_TEXT_OR_NULL)


def _completion(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    fields = {"id": _TEXT, "object": _kind(kind), "created": _COUNT, "model": _TEXT}
    return _object(**fields, choices=_list(choice), usage=_USAGE)


_RESPONSE = _object(
    id=_TEXT, object=_kind("response"), created_at={"type": "number"}, status=_TEXT, output=_LIST
)
_MESSAGE_USAGE = _object(input_tokens=_COUNT, output_tokens=_COUNT)
_MESSAGE = _object(
    id=_TEXT,
    type=_kind("message"),
    role=_kind("assistant"),
    content=_list(_object(type=_TEXT)),
    stop_reason=_TEXT_OR_NULL,
    usage=_MESSAGE_USAGE,
)
_EMBEDDING = _object(
    object=_kind("embedding"), index=_COUNT, embedding={"type": ["array", "string"]}
)
_EMBEDDINGS = _object(object=_kind("list"), data=_list(_EMBEDDING), model=_TEXT, usage=_USAGE)
_RANKED = _object(index=_COUNT, relevance_score={"type": "number"})
_SCORED = _object(index=_COUNT, score={"type": "number"})

ANSWERS: dict[str, dict[str, Any]] = {
    "GET /v1/models": _json(_object(object=_kind("list"), data=_list(_MODEL))),
    "GET /v1/models/{name}": _json(_MODEL),
    "POST /v1/chat/completions": {
        **_json(_completion("chat.completion", _CHAT_CHOICE)),
        **_EVENTS,
    },
    "POST /v1/completions": {**_json(_completion("text_completion", _TEXT_CHOICE)), **_EVENTS},
    "POST /v1/tokenize": _json(_object(count=_COUNT, tokens=_list(_COUNT))),
    "POST /v1/detokenize": _json(_object(prompt=_TEXT)),
    "POST /v1/embeddings": _json(_EMBEDDINGS),
    "POST /v1/rerank": _json(_object(results=_list(_RANKED))),
    "POST /v1/score": _json(_object(object=_kind("list"), data=_list(_SCORED))),
    "POST /v1/responses": {**_json(_RESPONSE), **_EVENTS},
    "GET /v1/responses/{response_id}": {**_json(_RESPONSE), **_EVENTS},
    "POST /v1/responses/{response_id}/cancel": _json(_RESPONSE),
    "POST /v1/messages": {**_json(_MESSAGE), **_EVENTS},
    "POST /arranca/": {"application/x-ndjson": {"schema": _TEXT}},
    "GET /api/conversations/{number}/messages/{message}/stream": _EVENTS,
    "GET /api/conversations/export": _json(_object(format=_TEXT, conversations=_LIST)),
    "GET /api/conversations/{number}/export": {
        **_json(_object(format=_TEXT, conversations=_LIST)),
        "text/markdown": {"schema": _TEXT},
    },
    "GET /api/events": _EVENTS,
    "GET /api/tree": _json(_OBJECT),
    "GET /api/tree/stream": _EVENTS,
    "GET /api/operate/dead/stream": _EVENTS,
    "GET /api/operate/drills/stream": _EVENTS,
    "GET /api/operate/hosts/stream": _EVENTS,
    "GET /api/operate/line/stream": _EVENTS,
    "GET /api/operate/logs/stream": _EVENTS,
    "GET /api/operate/queues/stream": _EVENTS,
}
