"""Export and import."""

import re
from typing import Literal

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from ninja import Router

from api.accounts.auth import AuthRequest, Member
from api.chat import store
from api.context import app
from api.transfer import export, imports
from api.transfer.schemas import Import, Imported

router = Router(tags=["transfer"], auth=Member())

_NOT_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9]+")


@router.get("/conversations/export")
async def export_all(request: AuthRequest) -> HttpResponseBase:
    """All my conversations as one JSON document, which `import` takes."""
    return StreamingHttpResponse(
        export.all_as_json(request.auth),
        content_type="application/json",
        headers=_as_file("canopy-conversations.json"),
    )


@router.get("/conversations/{row:number}/export")
async def export_one(
    request: AuthRequest, number: int, format: Literal["markdown", "json"] = "markdown"
) -> HttpResponseBase:
    """A conversation: the shown branch as Markdown, or all branches as JSON."""
    conversation = await store.conversation(request.auth, number)
    name = _NOT_IN_A_FILE_NAME.sub("-", conversation.title).strip("-").lower() or "conversation"
    if format == "json":
        content = await export.as_json(conversation)
        headers = _as_file(f"{name}.json")
        return HttpResponse(content, content_type="application/json", headers=headers)
    text = export.as_markdown(conversation, await store.branch(conversation))
    headers = _as_file(f"{name}.md")
    return HttpResponse(text, content_type="text/markdown; charset=utf-8", headers=headers)


@router.post("/conversations/import", response=Imported)
async def import_some(request: AuthRequest, body: Import) -> imports.Report:
    """Adds conversations. One that is there already, by its title and time, is left out."""
    model = await app().catalog.default_or_503()
    most = app().plans.of(request.auth).conversations
    report = await imports.store(request.auth, body.conversations, model, most)
    app().hub.publish_many(request.auth.pk)
    return report


def _as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
