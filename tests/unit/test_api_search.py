"""Full-text search: what is found, whose, and an index that no writer can forget."""

from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from api.accounts.models import User
from api.chat.models import Conversation, Message, Status
from api.search import sqlite
from api.search.index import ensure_index
from api.search.postgresql import PostgresqlIndex
from api.search.query import parse, snippet
from api.search.sqlite import SqliteIndex


async def talk(user: User, *texts: str, title: str = "Talk") -> Conversation:
    """A conversation of these messages."""
    conversation = await Conversation.objects.acreate(user=user, model="tiny", title=title)
    for text in texts:
        await Message.objects.acreate(conversation=conversation, role="user", content=text)
    return conversation


async def found(client: httpx.AsyncClient, words: str) -> list[dict[str, Any]]:
    """The results for these words."""
    answer = await client.get("/api/conversations/search", params={"q": words})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


async def numbers(client: httpx.AsyncClient, words: str) -> list[int]:
    """The conversations found."""
    return [result["conversation"]["id"] for result in await found(client, words)]


async def test_titles_first_then_the_newest_messages(member: httpx.AsyncClient, user: User) -> None:
    old = await talk(user, "An oak is a tree.", "Acorns fall from oaks.")
    titled = await talk(user, "nothing", title="My OAK")
    new = await talk(user, "The oak again")
    results = await found(member, "oak")
    assert [each["conversation"]["id"] for each in results] == [titled.pk, new.pk, old.pk]
    assert results[0]["title"] == {"text": "My OAK", "marks": [[3, 6]]}
    assert [hit["snippet"]["text"] for hit in results[2]["hits"]] == [
        "Acorns fall from oaks.",
        "An oak is a tree.",
    ]


@pytest.mark.parametrize(
    ("words", "hit"),
    [
        ("tree oak", True),
        ("TREE", True),
        ("oak stone", False),
        ("橡树", True),
        ("是树", True),
        ("a.b(c)", True),
        ('"quoted', True),
        ("50%", True),
        ("51%", False),
        ("5_%", False),
        ("OR", False),
        ("oak OR stone", False),
        ("oak*", False),
        pytest.param("é", True, marks=pytest.mark.sqlite),  # PostgreSQL finds words' beginnings
        ("\u0000", False),
    ],
)
async def test_words_in_any_script_and_with_any_sign(
    member: httpx.AsyncClient, user: User, words: str, hit: bool
) -> None:
    text = 'An oak is a tree. 橡树是树。 Call a.b(c) at 50%, "quoted". Olé.'
    conversation = await talk(user, text)
    assert await numbers(member, words) == ([conversation.pk] if hit else [])


async def test_attached_texts_and_their_names(member: httpx.AsyncClient, user: User) -> None:
    conversation = await talk(user, "other")
    attached = [{"name": "acorns.txt", "text": "Größe: 3 cm\nweight"}, {"name": "b", "text": "x"}]
    message = await Message.objects.acreate(
        conversation=conversation, role="user", content="an oak", attachments=attached
    )
    for words in ("acorns", "größe weight", "oak 3", "cm"):
        assert await numbers(member, words) == [conversation.pk], words
    [result] = await found(member, "weight")
    assert result["hits"][0]["snippet"]["text"] == "an oak acorns.txt Größe: 3 cm weight b x"
    rows = Message.objects.filter(pk=message.pk)
    await rows.aupdate(content="an elm")
    assert await numbers(member, "elm weight") == [conversation.pk]
    await rows.adelete()
    assert await numbers(member, "weight") == []


async def test_nobody_elses_and_nothing_deleted(
    member: httpx.AsyncClient, staff: httpx.AsyncClient, user: User
) -> None:
    conversation = await talk(user, "a secret oak")
    assert await numbers(staff, "secret") == []
    assert await numbers(member, "") == []
    assert await numbers(member, "secret") == [conversation.pk]
    await member.delete(f"/api/conversations/{conversation.pk}")
    assert await numbers(member, "secret") == []


async def test_the_index_follows_every_change(member: httpx.AsyncClient, user: User) -> None:
    conversation = await talk(user)
    message = await Message.objects.acreate(
        conversation=conversation, role="assistant", content="oaken", status=Status.STREAMING
    )
    rows = Message.objects.filter(pk=message.pk)
    assert await numbers(member, "oaken") == []  # while it is being written
    await rows.aupdate(content="oaken door")
    await rows.aupdate(status=Status.DONE)
    assert await numbers(member, "oaken door") == [conversation.pk]
    await rows.aupdate(content="stone")
    assert await numbers(member, "oaken") == []
    assert await numbers(member, "stone") == [conversation.pk]
    await rows.aupdate(status=Status.STREAMING)  # it goes on
    assert await numbers(member, "stone") == []
    await rows.aupdate(status=Status.DONE, content="stones")
    await rows.adelete()
    await Message.objects.acreate(conversation=conversation, role="user", content="other")
    assert await numbers(member, "stones") == []


@pytest.mark.sqlite
async def test_a_migration_that_drops_the_triggers_gets_them_back(
    member: httpx.AsyncClient, user: User
) -> None:
    def lose_triggers() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER chat_message_search_insert")
        ensure_index(using="default")

    await sync_to_async(lose_triggers)()
    conversation = await talk(user, "after the migration")
    assert await numbers(member, "migration") == [conversation.pk]


@pytest.mark.sqlite
async def test_a_new_index_is_filled_in_steps_while_others_write(
    member: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = await talk(user, "from before the upgrade")
    deleted = await talk(user, "also before the upgrade")
    latest = await talk(user, "the latest before the upgrade")
    index = SqliteIndex()

    def build_anew() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE chat_message_search")
            cursor.execute("DROP TABLE chat_message_search_state")
        index.ensure(connection)

    monkeypatch.setattr(sqlite, "_STEP", 1)
    fill = index._fill
    monkeypatch.setattr(index, "_fill", lambda _connection: False)
    await sync_to_async(build_anew)()  # and the process dies before the index is filled
    assert await numbers(member, "upgrade") == []
    await sync_to_async(fill)(connection)
    assert await numbers(member, "upgrade") == [latest.pk]
    fresh = await talk(user, "meanwhile")
    await Message.objects.filter(conversation=changed).aupdate(content="changed meanwhile")
    await Message.objects.filter(conversation=deleted).adelete()
    await sync_to_async(ensure_index)(using="default")
    assert await numbers(member, "upgrade") == [latest.pk]
    assert await numbers(member, "meanwhile") == [fresh.pk, changed.pk]
    await Message.objects.filter(conversation=changed).aupdate(content="again")
    assert await numbers(member, "meanwhile") == [fresh.pk]


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        ("oak  tree oak", ("oak", "tree")),
        ('"oak tree" leaf', ("oak tree", "leaf")),
        ("„oak tree“ “leaf fall”", ("oak tree", "leaf fall")),
        ('say "hello', ("say", '"hello')),
        ('6" pipe', ('6"', "pipe")),
        ('"" " "', ('""',)),
        ("", ()),
    ],
)
def test_words_between_quotation_marks_stand_together(words: str, terms: tuple[str, ...]) -> None:
    assert parse(words).terms == terms


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ("Oak tree", ["'Oak':*", "'Oak':*", "'tree':*", "'tree':*"]),  # also in attachments
        ("50%", ["'50':*", "'50':*", r"%50\%%"]),
        ("橡树", ["%橡树%"]),
        ("a.b(c)", ["%a.b(c)%"]),
        ("it's", ["%it's%"]),
        ("':*", ["%':*%"]),
        ("\\", [r"%\\%"]),
    ],
)
def test_postgresql_uses_its_index_for_plain_words_only(words: str, parameters: list[str]) -> None:
    condition, given = PostgresqlIndex().condition(parse(words))
    assert given == parameters
    assert condition.count("%s") == len(parameters)


def test_a_snippet_shows_the_first_place_on_one_line() -> None:
    text = "x " * 100 + "🌳 the\noak " + "y " * 200
    shown = snippet(text, parse("oak"))
    assert shown.text.startswith("…x")
    assert shown.text.endswith("…")
    assert "\n" not in shown.text
    start, end = shown.marks[0]
    as_javascript = shown.text.encode("utf-16-le")
    assert as_javascript[2 * start : 2 * end].decode("utf-16-le") == "oak"


def test_html_stays_text() -> None:
    shown = snippet("<img src=x onerror=alert(1)> oak", parse("oak"))
    assert shown.text == "<img src=x onerror=alert(1)> oak"
