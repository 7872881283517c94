"""New rows of one kind, stored together where many come at a time.

A transaction costs more than the rows in it. While one is being stored, the rows that come are
gathered for the next one: a row that comes alone waits for nothing.
"""

import asyncio
from collections.abc import Sequence
from typing import Generic, TypeVar

from asgiref.sync import sync_to_async
from django.db import DatabaseError, DataError, IntegrityError, models, transaction

MOST_ROWS = 64  # of one transaction: a row waits for few others

Row = TypeVar("Row", bound=models.Model)
Outcome = Exception | None  # of one row; None: it is stored


class RowInserts(Generic[Row]):
    """Stores the rows of one kind, whose key the database makes.

    Callers bound the rows that wait: each waits for its own.
    """

    def __init__(self, kind: type[Row]) -> None:
        self._kind = kind
        self._waiting: list[tuple[Row, asyncio.Future[Outcome]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def insert(self, row: Row) -> None:
        """Returns when the row is stored. Raises DatabaseError, as its own insertion would.

        Cancelling this leaves the row out, unless it is being stored already.
        """
        stored: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, stored))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name=f"inserts {self._kind}")
        error = await stored
        if error is not None:
            raise error

    async def stop(self) -> None:
        """Returns when all rows are stored, or have failed."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    async def _write(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[:MOST_ROWS], self._waiting[MOST_ROWS:]
            wanted = [(row, stored) for row, stored in taken if not stored.done()]
            outcomes = await self._store([row for row, _ in wanted])
            for (_, stored), outcome in zip(wanted, outcomes, strict=True):
                if not stored.done():
                    stored.set_result(outcome)

    async def _store(self, rows: list[Row]) -> Sequence[Outcome]:
        try:
            return await sync_to_async(self._insert)(rows)
        except Exception as error:  # fate: raised again to whoever waits for one of the rows
            return [error] * len(rows)

    def _insert(self, rows: list[Row]) -> Sequence[Outcome]:
        """All in one transaction; one by one if something is wrong with any of them."""
        try:
            with transaction.atomic():
                self._kind._default_manager.bulk_create(rows)
        except (IntegrityError, DataError) as error:
            if len(rows) == 1:
                return [error]
            return [self._insert_alone(row) for row in rows]
        return [None] * len(rows)

    def _insert_alone(self, row: Row) -> Outcome:
        """A failure is this row's: those before it stay stored."""
        row.pk = None  # what was rolled back may be another row's by now
        try:
            return self._insert([row])[0]
        except DatabaseError as error:
            return error
