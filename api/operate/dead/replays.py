"""Runs the jobs of dead letters again, in the background."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from django.db import DatabaseError

from api.answers import store as answers
from api.answers.record import StoredAnswer
from api.errors import ApiError
from api.operate.dead import store
from api.operate.dead.models import DeadReplay
from api.requests.build import new_request_id
from api.requests.submit import Submitter
from broker import dead_changes
from broker.dead_changes import Changes
from broker.dead_letters import DeadLetters, Letter
from broker.dead_replay import Outcome, read_to_end
from broker.errors import BadChange, BrokerError, NoSuchLetter, NoTree
from broker.stream import Stream
from broker.wire import Job

AT_ONCE = 4  # replays of one process that run; the others wait
REPORT_SECONDS = 1.0  # between two reports of progress
ALIVE_SECONDS = 5.0  # between two signs of life

log = structlog.get_logger("canopy.api")


@dataclass(slots=True)
class _Run:
    """One letter, its new job, and its row."""

    letter: Letter
    job: Job
    key: int
    ended: bool = False


class Replays:
    """Holds the letters while their jobs run, so that nobody else replays or drops them.

    A letter is dropped when its job was answered; otherwise it returns to the queue, also when this
    process ends. The answer goes where the failure of its job is stored, if it still is, among
    `kinds`, unless an operator has changed the job. `on_answer` is called then.
    """

    def __init__(
        self,
        letters: DeadLetters,
        submitter: Submitter,
        kinds: Sequence[type[StoredAnswer]],
        on_answer: Callable[[StoredAnswer], Awaitable[None]],
    ) -> None:
        self._letters = letters
        self._submitter = submitter
        self._kinds = kinds
        self._on_answer = on_answer
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, by: str, ids: Sequence[str], changes: Changes) -> list[DeadReplay]:
        """Returns once the letters are held. Raises ApiError 400, 404 or 503; then none runs."""
        begun: asyncio.Future[list[DeadReplay]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._replay(by, ids, changes, begun), name="replay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await begun

    async def stop(self) -> None:
        """Ends them all; their letters return to the queue."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _replay(
        self,
        by: str,
        ids: Sequence[str],
        changes: Changes,
        begun: "asyncio.Future[list[DeadReplay]]",
    ) -> None:
        try:
            async with self._letters.take(ids) as letters:
                jobs = [_new_job(letter, changes) for letter in letters]
                rows = await store.create(by, [letter.id for letter in letters], jobs)
                _resolve(begun, rows)
                runs = []
                for letter, job, row in zip(letters, jobs, rows, strict=True):
                    runs.append(_Run(letter, job, row.pk))
                await self._run_all(runs)
        except (ApiError, BrokerError, DatabaseError) as error:
            if begun.done():
                log.warning("replays broke off; their letters are back", reason=str(error))
            else:
                begun.set_exception(_refusal(error))
        finally:
            if not begun.done():
                begun.cancel()

    async def _run_all(self, runs: list[_Run]) -> None:
        alive = asyncio.create_task(_report_alive(runs), name="replays alive")
        try:
            async with asyncio.TaskGroup() as together:
                for run in runs:
                    together.create_task(self._run(run))
        except* (BrokerError, DatabaseError) as errors:
            raise errors.exceptions[0] from None
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)

    async def _run(self, run: _Run) -> None:
        async with self._turns:
            outcome = await self._answer(run)
        given = await self._give(run, outcome)
        await store.finish(run.key, outcome, given=given)  # first: a lost answer keeps its letter
        if outcome.error is None:
            run.letter.drop()
        else:
            run.letter.give_back()
        run.ended = True
        log.info("dead letter replayed", request_id=run.job.request_id, error=outcome.error)

    async def _give(self, run: _Run, outcome: Outcome) -> bool:
        """Gives the answer to the user whose request had failed; False if nobody waits for it."""
        if outcome.error is not None or outcome.end is None or not _asks_the_same(run):
            return False
        if run.job.pooling is not None:  # its vectors are not in the outcome
            return False
        answer = await answers.answer_failed(
            self._kinds, run.letter.id, outcome.text, outcome.node, outcome.end, outcome.start
        )
        if answer is None:
            return False
        await self._on_answer(answer)
        return True

    async def _answer(self, run: _Run) -> Outcome:
        try:
            stream = await self._submitter.publish(run.job)
        except NoTree:
            return Outcome("", 0, "", f"there is no tree of the model {run.job.model!r} now")
        except BrokerError as error:
            return Outcome("", 0, "", str(error))
        reporting = asyncio.create_task(_report(run.key, stream), name="replay's progress")
        try:
            return await read_to_end(stream)
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)


def _asks_the_same(run: _Run) -> bool:
    """Whether the answer is what the user would have got, and begins with the text they have."""
    former, job = run.letter.job, run.job
    if former is None:
        return False
    return _question(former) == _question(job)


def _question(job: Job) -> tuple[object, ...]:
    return (job.model, job.messages, job.prompt, job.prompt_ids, job.sampling, job.delivered)


def _new_job(letter: Letter, changes: Changes) -> Job:
    """Raises ApiError, BadChange."""
    if letter.job is None:
        message = f"{letter.id} is not a job ({letter.reason}): it can only be read and dropped"
        raise ApiError(400, message, field="ids", code="invalid_value")
    job = dead_changes.changed(letter.job, changes)
    return dead_changes.to_replay(job, new_request_id(), time.time())


def _resolve(begun: "asyncio.Future[list[DeadReplay]]", rows: list[DeadReplay]) -> None:
    """Whoever asked may have left; the replays go on."""
    if not begun.done():
        begun.set_result(rows)


def _refusal(error: ApiError | BrokerError | DatabaseError) -> Exception:
    if isinstance(error, BrokerError):
        return refusal(error)
    return error


def refusal(error: BrokerError) -> ApiError:
    """The API's error for one of the broker's."""
    if isinstance(error, NoSuchLetter):
        return ApiError(404, str(error), field="ids", code="not_found")
    if isinstance(error, BadChange):
        field, _, _ = str(error).partition(":")
        return ApiError(400, str(error), field=f"changes.{field}", code="invalid_value")
    return ApiError(503, f"the dead letters cannot be read now: {error}", code="unavailable")


async def _report(key: int, stream: Stream) -> None:
    """Stores how far the answer is, while it is read."""
    shown = (-1, "")
    while True:
        if shown != (stream.tokens, stream.node):
            shown = (stream.tokens, stream.node)
            try:
                await store.note_progress(key, stream.tokens, stream.node)
            except DatabaseError as error:  # fate: the next report is another chance
                log.warning("a replay's progress is stored later", reason=str(error))
        await asyncio.sleep(REPORT_SECONDS)


async def _report_alive(runs: list[_Run]) -> None:
    while True:
        await asyncio.sleep(ALIVE_SECONDS)
        try:
            await store.note_alive([run.key for run in runs if not run.ended])
        except DatabaseError as error:  # fate: the next sign of life is another chance
            log.warning("replays could not be marked alive", reason=str(error))
