"""GET /api/conversations/search."""

from typing import Annotated

from ninja import Query, Router, Schema
from pydantic import Field

from api.accounts.auth import AuthRequest, Member
from api.chat.models import Role
from api.chat.schemas import Summary
from api.http.parsing import StorableText
from api.search import find
from api.search.query import parse

router = Router(tags=["chat"], auth=Member())

Text = Annotated[StorableText, Field(max_length=200)]


class Snippet(Schema):
    """Text on one line. `marks`: [start, end] of what was sought, in UTF-16 units."""

    text: str
    marks: list[tuple[int, int]]


class Hit(Schema):
    """A message that has all terms."""

    message: int
    role: Role
    snippet: Snippet


class Result(Schema):
    """A conversation that has all terms in its title, or in one of its messages."""

    conversation: Summary
    title: Snippet
    hits: list[Hit]


class Results(Schema):
    """Conversations by title first, then the newest."""

    results: list[Result]


@router.get("/conversations/search", response=Results)
async def search(request: AuthRequest, q: Annotated[Text, Query()]) -> dict[str, list[find.Result]]:
    """My conversations that have all these words, or parts of words."""
    return {"results": await find.find(request.auth, parse(q))}
