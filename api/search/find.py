"""Searching titles and messages: the conversations with hits, by title first, then the newest."""

from dataclasses import dataclass, field
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection
from django.db.models import Q

from api.accounts.models import User
from api.chat import conversation_list
from api.chat.models import Conversation
from api.search.index import index_of
from api.search.query import Query, Snippet, snippet

MOST_CONVERSATIONS = 30
MOST_MESSAGES = 200  # looked at
HITS = 3  # shown of one conversation

_MESSAGES = """
SELECT m.id, m.conversation_id, m.role, {text}
FROM chat_message m JOIN chat_conversation c ON c.id = m.conversation_id
WHERE c.user_id = %s AND c.deleted_at IS NULL AND NOT c.temporary AND {condition}
ORDER BY m.id DESC LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that has what is sought."""

    message: int
    role: str
    snippet: Snippet


@dataclass(slots=True)
class Result:
    """A conversation with what was found in it. `title`: with marks."""

    conversation: Conversation
    title: Snippet
    hits: list[Hit] = field(default_factory=list)


@sync_to_async
def find(user: User, query: Query) -> list[Result]:
    """The user's conversations that have all terms in their title, or in one message."""
    if not query.terms:
        return []
    hits = _hits(user, query)
    titled = _with_title(user, query)
    numbers = [*titled, *(number for number in hits if number not in titled)]
    return _results(user, query, numbers[:MOST_CONVERSATIONS], hits)


def _with_title(user: User, query: Query) -> list[int]:
    terms = Q()
    for term in query.terms:
        terms &= Q(title__icontains=term)
    rows = conversation_list.listed(user).filter(terms).order_by("-updated")
    return list(rows.values_list("pk", flat=True)[:MOST_CONVERSATIONS])


def _hits(user: User, query: Query) -> dict[int, list[Hit]]:
    """By conversation, the newest first."""
    index = index_of(connection)
    condition, parameters = index.condition(query)
    statement = _MESSAGES.format(text=index.text, condition=condition)
    hits: dict[int, list[Hit]] = {}
    with connection.cursor() as cursor:
        cursor.execute(statement, [user.pk, *parameters, MOST_MESSAGES])
        for message, conversation, role, content in cursor.fetchall():
            matches = hits.setdefault(conversation, [])
            if len(matches) < HITS:
                matches.append(Hit(message, role, snippet(content, query)))
    return hits


def _results(
    user: User, query: Query, numbers: list[int], hits: dict[int, list[Hit]]
) -> list[Result]:
    rows: dict[Any, Conversation] = conversation_list.listed(user).in_bulk(numbers)
    results: list[Result] = []
    for number in numbers:
        row = rows.get(number)
        if row is not None:
            results.append(Result(row, snippet(row.title, query), hits.get(number, [])))
    return results
