"""An example of each operation's body, for the document; tests send them all."""

from typing import Any

_ASK = "Name three trees."
_MESSAGES = [{"role": "user", "content": _ASK}]
_MODEL = "smollm2-135m-instruct"
_CHAT: dict[str, Any] = {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 64}
_QUERY = "What is the tallest tree?"
_DOCUMENTS = ["The coast redwood grows to 115 metres.", "Oaks carry acorns."]
_STYLE = {"instructions": "Answer in one sentence.", "temperature": 0.7}
_WORDS = "correct horse battery staple"
_SUBSCRIPTION = "https://push.example.com/send/4f1c"
_LETTER = {"ids": ["4f1c0d9be2a74f6c"]}
_AUTOSCALE = {"model": _MODEL, "enabled": True, "least": 1, "most": 4}

EXAMPLES: dict[str, Any] = {
    "POST /v1/chat/completions": _CHAT,
    "POST /v1/completions": {"model": _MODEL, "prompt": "Three trees are", "max_tokens": 16},
    "POST /v1/tokenize": {"model": _MODEL, "prompt": _ASK},
    "POST /v1/detokenize": {"model": _MODEL, "tokens": [2683, 1296, 4990]},
    "POST /v1/embeddings": {"model": "all-MiniLM-L6-v2", "input": _DOCUMENTS},
    "POST /v1/rerank": {"model": "reranker", "query": _QUERY, "documents": _DOCUMENTS},
    "POST /v1/score": {"model": "reranker", "text_1": _QUERY, "text_2": _DOCUMENTS},
    "POST /v1/batches": {
        "input_file_id": "file-4f1c0d9be2a74f6c",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "POST /v1/jobs": {
        "endpoint": "/v1/chat/completions",
        "body": _CHAT,
        "priority": "batch",
        "deadline": 3600,
        "webhook": {"url": "https://example.com/hook"},
    },
    "POST /v1/responses/input_tokens": {"model": _MODEL, "input": _ASK},
    "POST /v1/responses": {"model": _MODEL, "input": _ASK, "instructions": "Be brief."},
    "POST /v1/messages": _CHAT,
    "POST /v1/messages/count_tokens": {"model": _MODEL, "messages": _MESSAGES},
    "POST /arranca/": {"text": _ASK, "timestamp": 1767225600.5},
    "POST /api/login": {"username": "ada", "password": _WORDS},
    "POST /api/conversations": {"content": _ASK},
    "PATCH /api/conversations/{number}": {"title": "Trees", "pinned": True},
    "POST /api/conversations/{number}/messages": {"content": _ASK},
    "POST /api/conversations/{number}/messages/{message}/regenerate": {},
    "POST /api/conversations/bulk": {"action": "archive", "ids": [1, 2]},
    "POST /api/conversations/import": {
        "format": "canopy",
        "version": 1,
        "conversations": [{"title": "Trees", "messages": [{"id": "1", **_MESSAGES[0]}]}],
    },
    "POST /api/operate/dead/replay": _LETTER,
    "POST /api/operate/dead/drop": _LETTER,
    "POST /api/operate/drills": {"node": "n3", "kind": "kill"},
    "POST /api/operate/line/jobs/{request_id}/move": {"to": "front"},
    "POST /api/operate/line/jobs/{request_id}/class": {"job_class": "batch"},
    "PUT /api/operate/line/intake": {"model": _MODEL, "paused": True, "reason": "maintenance"},
    "PUT /api/operate/line/prompts": {"allowed": False},
    "POST /api/operate/nodes/{name}": {"action": "drain"},
    "POST /api/operate/hosts/{host}/nodes": {"model": _MODEL},
    "POST /api/operate/models/load": {"model": _MODEL, "host": "gpu-1"},
    "POST /api/operate/models/stop": {"model": _MODEL},
    "PUT /api/operate/models/settings": {"model": _MODEL, "paused": True},
    "PUT /api/operate/models/autoscale": _AUTOSCALE,
    "POST /api/operate/models/autoscale/off": {"model": _MODEL},
    "PUT /api/operate/plans": {"name": "student", "requests_per_minute": 20},
    "POST /api/operate/plans/remove": {"name": "student"},
    "POST /api/operate/plans/assign": {"user": "ada", "plan": "student"},
    "POST /api/push/subscriptions": {
        "endpoint": _SUBSCRIPTION,
        "keys": {
            "p256dh": "BNcRdreALRFXTkOOUHK1EtK2wtaz5Ry4YfYCA_0QTpQ",
            "auth": "tBHItJI5svbpez7K",
        },
    },
    "POST /api/push/subscriptions/remove": {"endpoint": _SUBSCRIPTION},
    "POST /api/account/start": {"name": "ada", "password": _WORDS},
    "POST /api/account/password": {"current": "a former password", "new": _WORDS},
    "POST /api/account/delete": {"password": _WORDS},
    "POST /api/account/keys": {"label": "notebook", "endpoints": ["chat"]},
    "PUT /api/preferences": _STYLE,
    "PUT /api/conversations/{number}/preferences": _STYLE,
    "PUT /api/conversations/{number}/preset": {"preset": 1},
    "POST /api/presets": {"name": "Brief", **_STYLE},
    "PUT /api/conversations/{number}/messages/{message}/feedback": {"good": True, "note": "Right."},
}
