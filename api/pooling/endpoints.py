"""POST /v1/embeddings, /v1/rerank and /v1/score."""

import asyncio
import base64
import time
from array import array
from typing import Any

import msgspec
from django.http import HttpResponse, JsonResponse
from ninja import Router

from api.accounts.auth import AuthRequest, Key
from api.http.documentation import JOB_OPERATION
from api.pooling.results import Results, read
from api.pooling.schemas import Embeddings, PoolingBody, Rerank, Score
from api.requests.build import new_request_id
from api.requests.deadline import seconds_left
from broker.wire import Job, Pooling, Task

ROWS_NUMBERS = 32_768  # written between two turns of the event loop

router = Router(tags=["OpenAI-compatible"], auth=Key())
bare = Router(auth=Key())  # where clients of vLLM and Cohere look: without /v1


@router.post("/embeddings", openapi_extra=JOB_OPERATION)
async def embeddings(request: AuthRequest, body: Embeddings) -> HttpResponse:
    """A vector of each input."""
    job = _job(request, body, "embed", body.to_wire())
    results = await read(request, job, "input")
    rows = await _written(results.rows, as_text=body.encoding_format == "base64")
    content = {"object": "list", "data": rows, "model": body.model, "usage": _usage(results)}
    return HttpResponse(
        msgspec.json.encode(content), content_type="application/json", headers=results.headers
    )


@bare.post("/rerank", include_in_schema=False)
@bare.post("/v2/rerank", include_in_schema=False)
@router.post("/rerank", openapi_extra=JOB_OPERATION)
async def rerank(request: AuthRequest, body: Rerank) -> JsonResponse:
    """The documents by how well they answer the query, best first."""
    job = _job(request, body, "score", body.to_wire())
    results = await read(request, job, "documents")
    best = sorted(enumerate(results.scores()), key=lambda pair: -pair[1])
    found = []
    for index, score in best[: body.top_n or None]:
        entry: dict[str, Any] = {"index": index, "relevance_score": score}
        if body.return_documents:
            entry["document"] = {"text": body.documents[index]}
        found.append(entry)
    content = {
        "id": f"rerank-{results.request_id}",
        "object": "list",
        "model": body.model,
        "results": found,
        "usage": _usage(results),
    }
    return JsonResponse(content, headers=results.headers)


@bare.post("/score", include_in_schema=False)
@router.post("/score", openapi_extra=JOB_OPERATION)
async def score(request: AuthRequest, body: Score) -> JsonResponse:
    """How well the second text of each pair answers the first."""
    job = _job(request, body, "score", body.to_wire())
    results = await read(request, job, "text_2")
    data = [
        {"index": index, "object": "score", "score": value}
        for index, value in enumerate(results.scores())
    ]
    content = {
        "id": f"score-{results.request_id}",
        "object": "list",
        "created": results.created,
        "model": body.model,
        "data": data,
        "usage": _usage(results),
    }
    return JsonResponse(content, headers=results.headers)


def _job(request: AuthRequest, body: PoolingBody, task: Task, pooling: Pooling) -> Job:
    user = request.auth
    return Job(
        request_id=new_request_id(),
        model=body.model,
        reply_to="",  # filled in by the broker client
        created=time.time(),
        task=task,
        pooling=pooling,
        user=user.get_username(),
        job_class=body.job_class,
        share=user.share,
        seconds_left=seconds_left(request),
    )


async def _written(rows: list[bytes], *, as_text: bool) -> list[dict[str, Any]]:
    """The vectors as JSON, in parts: other requests go on meanwhile."""
    written: list[dict[str, Any]] = []
    numbers = 0
    for index, row in enumerate(rows):
        numbers += len(row)
        if numbers > ROWS_NUMBERS:
            numbers = 0
            await asyncio.sleep(0)
        vector: Any
        if as_text:
            vector = base64.b64encode(row).decode()
        else:
            vector = msgspec.Raw(msgspec.json.encode(array("f", row).tolist()))
        written.append({"object": "embedding", "index": index, "embedding": vector})
    return written


def _usage(results: Results) -> dict[str, int]:
    return {
        "prompt_tokens": results.tokens,
        "completion_tokens": 0,
        "total_tokens": results.tokens,
    }
