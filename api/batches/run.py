"""Running one batch: its file is checked, its lines are answered, its results are merged.

Whatever this process has written before it dies is found by the next owner (results.py), which
answers the lines that are missing.
"""

import asyncio
import random
import time
from datetime import timedelta

import structlog
from django.db import DatabaseError
from django.utils import timezone

from api.batches import lines, results, store
from api.batches.lines import BadLine, Line
from api.batches.models import Batch, BatchStatus
from api.batches.pacing import Pacer
from api.batches.results import Counts, Kind, PartFile, Result, Unfinished
from api.environment import LONGEST_JOB
from api.files.disk import ContentStore, new_name, opened
from api.files.models import StoredFile
from api.requests import internal
from api.requests.internal import Reply
from api.requests.origin import Origin
from broker.threads import in_thread

log = structlog.get_logger("canopy.api")

BEAT_SECONDS = 1.0
PAUSE_SECONDS = (0.5, 30.0)  # first and longest, between tries of a line that is refused
MOST_FAILURES = 5  # of a line's jobs, for reasons that may pass
CANCELLED = Unfinished("batch_cancelled", "The batch was cancelled before this request was sent.")
EXPIRED = Unfinished(
    "batch_expired", "This request could not be executed before the completion window expired."
)
MISSING = "The input file was deleted."
LOST = Unfinished("batch_failed", "This request was not executed.")


class BatchRun:
    """One batch while this process owns it. `keep`: how long its files are kept."""

    def __init__(self, batch: Batch, contents: ContentStore, pacer: Pacer, keep: timedelta) -> None:
        self._batch = batch
        self._contents = contents
        self._pacer = pacer
        self._keep = keep
        self._counts = Counts()
        self._part: PartFile | None = None
        self._writing = asyncio.Lock()
        self._resume_at = 0.0  # time.monotonic(); until then no further lines are started
        self._stop: Unfinished | None = None  # why the rest of the lines is not answered
        self._stopped = asyncio.Event()
        self._log = log.bind(batch=batch.public_id)

    async def run(self) -> None:
        """Returns when the batch has ended, or belongs to another process."""
        work = asyncio.create_task(self._work_or_fail(), name=f"work of {self._batch.public_id}")
        try:
            while not (await asyncio.wait({work}, timeout=BEAT_SECONDS))[0]:
                if not await self._beat():
                    self._log.warning("this batch is another process's now, or was removed")
                    return
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if self._part is not None:
                self._part.close()

    async def _beat(self) -> bool:
        """False if the batch is not ours any more. Retried if the database is away."""
        batch = self._batch
        try:
            if not await store.heartbeat(batch, self._counts):
                return False
        except DatabaseError as error:
            self._log.warning("a batch's progress could not be stored", reason=str(error))
            return True
        if batch.status == BatchStatus.CANCELLING or not batch.user.is_active:
            self._end_early(CANCELLED)
        elif timezone.now() > batch.expires:
            self._end_early(EXPIRED)
        return True

    def _end_early(self, reason: Unfinished) -> None:
        if self._stop is None:
            self._stop = reason
            self._stopped.set()

    # ---- in order

    async def _work_or_fail(self) -> None:
        """Without its input file a batch cannot end otherwise: not even its results have an order.

        Whatever else is raised may pass: the next owner tries again.
        """
        try:
            await self._work()
        except FileNotFoundError as error:
            self._log.warning("a file of a batch is gone", reason=str(error))
            report = lines.Report(total=self._batch.total)
            report.add(lines.BadLine("missing_file", MISSING, "input_file_id"), None)
            await self._fail(report)

    async def _work(self) -> None:
        batch = self._batch
        if batch.status == BatchStatus.VALIDATING and not await self._validate():
            return
        self._counts = results.count(await self._index())
        if batch.status == BatchStatus.CANCELLING:
            self._end_early(CANCELLED)
        if batch.status == BatchStatus.IN_PROGRESS:
            await self._answer_lines()
        await self._finalize()

    async def _validate(self) -> bool:
        """False if the batch goes no further."""
        path = self._contents.path(self._batch.input_content)
        report = await asyncio.to_thread(lines.check, path, self._batch.endpoint)
        if not report.errors:
            fields = {"total": report.total, "model": report.model}
            return await self._advance(BatchStatus.IN_PROGRESS, **fields)
        self._log.info("a batch has failed the check of its file", errors=len(report.errors))
        await self._fail(report)
        return False

    async def _fail(self, report: lines.Report) -> None:
        errors = {"object": "list", "data": report.errors}
        await self._advance(BatchStatus.FAILED, errors=errors, total=report.total)

    async def _advance(self, status: str, **fields: object) -> bool:
        """False if the batch is not ours; True also if its user is cancelling it."""
        if await store.advance(self._batch, status, **fields):
            return True
        if await self._beat() and self._batch.status == BatchStatus.CANCELLING:
            await store.advance(self._batch, BatchStatus.CANCELLING, **fields)
            return status != BatchStatus.FAILED
        return False

    async def _index(self) -> dict[int, results.Place]:
        parts = self._contents.parts(self._batch.name)
        return await in_thread(results.index, parts)

    async def _answer_lines(self) -> None:
        """Returns when all lines have a result, or shall have none."""
        done = set(await self._index())
        path = self._contents.part(self._batch.name, self._batch.lease)
        self._part = PartFile(path)
        await in_thread(self._part.open)
        answering = asyncio.create_task(self._start_lines(done))
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({answering, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not answering.done():
                answering.cancel()
            await asyncio.wait({answering})
        if not answering.cancelled():
            answering.result()

    async def _start_lines(self, done: set[int]) -> None:
        path = self._contents.path(self._batch.input_content)
        with await opened(path) as file:
            source = lines.numbered(file)
            async with asyncio.TaskGroup() as tasks:
                while some := await in_thread(lines.some, source):
                    for number, raw in some:
                        if number not in done:
                            await self._start_line(tasks, number, raw)

    async def _start_line(self, tasks: asyncio.TaskGroup, number: int, raw: bytes) -> None:
        try:
            line = lines.parse(number, raw, self._batch.endpoint)
        except BadLine as error:  # one that the check let pass: nested as deeply as a stack allows
            reason = Unfinished(error.code, error.message)
            await self._add_result(results.of_unfinished(number, "", reason))
            return
        await self._take_place(line.model)
        tasks.create_task(self._answer_paced(line))

    async def _answer_paced(self, line: Line) -> None:
        """The caller has a place of the pacer for the line."""
        await self._add_result(await self._answer(line))

    async def _add_result(self, result: Result) -> None:
        async with self._writing:
            await in_thread(self._part_file.write, result)
            self._counts.add(result.kind)

    @property
    def _part_file(self) -> PartFile:
        if self._part is None:
            raise AssertionError("no line is answered before the file of the results is open")
        return self._part

    async def _answer(self, line: Line) -> Result:
        """The line's result, after as many tries as it needs while nobody takes its job.

        It keeps no place while it pauses: a user's plan may refuse it for hours.
        """
        failures = 0
        pause, longest = PAUSE_SECONDS
        while True:
            reply = await self._call_in_place(line)
            if reply is None:
                return results.of_unfinished(line.number, line.custom_id, EXPIRED)
            failures += reply.request_id is not None
            is_final = reply.status not in {429, 503} or failures >= MOST_FAILURES
            if is_final:
                return results.of_reply(line, reply)
            wait = max(pause * random.uniform(0.5, 1.0), reply.retry_after or 0.0)
            self._resume_at = max(self._resume_at, time.monotonic() + wait)
            await asyncio.sleep(wait)
            pause = min(longest, pause * 2)
            await self._pacer.acquire(line.model)

    async def _call_in_place(self, line: Line) -> Reply | None:
        """Gives the line's place back then. None if the batch's time is over."""
        try:
            left = (self._batch.expires - timezone.now()).total_seconds()
            if left <= 0:
                return None
            return await internal.call(
                self._batch.user,
                self._batch.endpoint,
                line.body,
                Origin(job_class="batch"),
                seconds_left=min(left, LONGEST_JOB),
            )
        finally:
            self._pacer.release(line.model)

    async def _take_place(self, model: str) -> None:
        """For a further line: not while one pauses, for what refuses it refuses the next."""
        await self._pacer.acquire(model)
        while (left := self._resume_at - time.monotonic()) > 0:
            self._pacer.release(model)
            await asyncio.sleep(left)
            await self._pacer.acquire(model)

    async def _finalize(self) -> None:
        batch = self._batch
        if batch.status == BatchStatus.IN_PROGRESS:
            await self._advance(BatchStatus.FINALIZING)
        if batch.status == BatchStatus.CANCELLING:
            self._end_early(CANCELLED)
        reason = self._stop or (EXPIRED if timezone.now() > batch.expires else None)
        names: dict[Kind, str] = {"output": new_name(), "error": new_name()}
        counts, files = await in_thread(self._merge, names, reason or LOST)
        self._counts = counts
        ended = await store.finish(batch, _ending(reason, counts, batch.total), counts, files)
        kept = {file.content for file in files.values()} if ended else set()
        await in_thread(self._clean_up, set(names.values()) - kept, ended)
        if ended:
            done = {"completed": counts.completed, "failed": counts.failed}
            self._log.info("batch ended", status=batch.status, **done)

    def _merge(
        self, names: dict[Kind, str], reason: Unfinished
    ) -> tuple[Counts, dict[Kind, StoredFile]]:
        """Writes the output and the error file; their rows, those of empty files left out."""
        contents, batch = self._contents, self._batch
        source = contents.path(batch.input_content)
        with contents.create(names["output"]) as output, contents.create(names["error"]) as errors:
            parts = contents.parts(batch.name)
            counts = results.merge(parts, source, output, errors, reason)
        files: dict[Kind, StoredFile] = {}
        for kind, name in names.items():
            size = contents.path(name).stat().st_size
            if size:
                files[kind] = self._row(kind, name, size)
        return counts, files

    def _row(self, kind: Kind, name: str, size: int) -> StoredFile:
        seconds = self._batch.output_seconds
        keep = self._keep if seconds is None else min(self._keep, timedelta(seconds=seconds))
        return StoredFile(
            user=self._batch.user,
            content=name,
            filename=f"{self._batch.public_id}_{kind}.jsonl",
            purpose="batch_output",
            size=size,
            expires=timezone.now() + keep,
        )

    def _clean_up(self, names: set[str], ended: bool) -> None:
        for name in names:
            self._contents.delete(name)
        for part in self._contents.parts(self._batch.name) if ended else ():
            part.unlink(missing_ok=True)


def _ending(reason: Unfinished | None, counts: Counts, total: int) -> str:
    if reason is EXPIRED and counts.completed + counts.failed >= total:
        return BatchStatus.EXPIRED
    if reason is CANCELLED:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if reason is EXPIRED else BatchStatus.COMPLETED
