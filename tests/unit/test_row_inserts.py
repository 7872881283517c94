"""Rows that come at the same time are stored together, and fail alone."""

import asyncio

import pytest
from django.db import IntegrityError, OperationalError

from api.accounts.models import User
from api.responses import store
from api.responses.models import StoredResponse
from api.storage.inserts import MOST_ROWS, RowInserts
from tests.unit.api_site import FakeClient, make_user


def row(user: User, name: str) -> StoredResponse:
    return StoredResponse(
        user=user, name=name, request_id=name, parameters={}, input=[], input_size=2
    )


async def test_rows_that_come_together_are_stored_together(
    fake: FakeClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserts = RowInserts(StoredResponse)
    sizes: list[int] = []
    insert = inserts._insert

    def counted(rows: list[StoredResponse]) -> list[Exception | None]:
        sizes.append(len(rows))
        return list(insert(rows))

    monkeypatch.setattr(inserts, "_insert", counted)
    rows = [row(user, f"together{number}") for number in range(MOST_ROWS + 10)]
    await asyncio.gather(*map(inserts.insert, rows))
    assert sizes == [MOST_ROWS, 10]
    for each in rows:
        stored = await store.find(user, each.name)
        assert stored is not None
        assert stored.pk == each.pk


async def test_a_row_that_cannot_be_stored_fails_alone(fake: FakeClient, user: User) -> None:
    inserts = RowInserts(StoredResponse)
    gone = await make_user()
    orphan = row(gone, "orphan")
    await User.objects.filter(pk=gone.pk).adelete()
    await inserts.insert(row(user, "taken"))
    rows = [row(user, "first"), row(user, "taken"), orphan, row(user, "last")]
    results = await asyncio.gather(*map(inserts.insert, rows), return_exceptions=True)
    assert [type(result) for result in results] == [
        type(None),
        IntegrityError,
        IntegrityError,
        type(None),
    ]
    assert await store.find(user, "first") is not None
    assert await store.find(user, "last") is not None


async def test_an_outage_is_everybodys(
    fake: FakeClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserts = RowInserts(StoredResponse)

    def fails(rows: list[StoredResponse]) -> None:
        raise OperationalError("database or disk is full")

    monkeypatch.setattr(inserts, "_insert", fails)
    rows = [row(user, "a"), row(user, "b")]
    results = await asyncio.gather(*map(inserts.insert, rows), return_exceptions=True)
    assert all(isinstance(result, OperationalError) for result in results)
    monkeypatch.undo()
    await inserts.insert(rows[0])  # the next one is tried again


async def test_what_is_stored_before_an_outage_is_said_to_be(
    fake: FakeClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserts = RowInserts(StoredResponse)
    await inserts.insert(row(user, "taken"))
    insert = inserts._insert

    def fails_at_last(rows: list[StoredResponse]) -> list[Exception | None]:
        if [each.name for each in rows] == ["last"]:
            raise OperationalError("database is locked")
        return list(insert(rows))

    monkeypatch.setattr(inserts, "_insert", fails_at_last)
    rows = [row(user, "first"), row(user, "taken"), row(user, "last")]
    first, taken, last = await asyncio.gather(*map(inserts.insert, rows), return_exceptions=True)
    assert first is None
    assert isinstance(taken, IntegrityError)
    assert isinstance(last, OperationalError)
    assert await store.find(user, "first") is not None


async def test_who_leaves_while_waiting_stores_nothing(fake: FakeClient, user: User) -> None:
    inserts = RowInserts(StoredResponse)
    tasks = [asyncio.create_task(inserts.insert(row(user, name))) for name in ("stays", "leaves")]
    await asyncio.sleep(0)  # both wait, and nothing is being stored yet
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await inserts.stop()
    assert await store.find(user, "stays") is not None
    assert await store.find(user, "leaves") is None
