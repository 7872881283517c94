"""Questions to all nodes about their jobs, and their answers as an operator gets them."""

import asyncio
import time

from api.errors import ApiError
from api.operate.line.view import LineView, line
from broker.errors import Unavailable
from broker.job_messages import Answer, AnyQuestion, FindJobs
from broker.job_watch import ArrivedReport, JobWatch

IN_TRANSIT_SECONDS = 0.3  # a job may be between two nodes: then a second question finds it


async def find(watch: JobWatch, request_id: str, user: str | None, limit: int) -> LineView:
    """The jobs of that user whose ids begin so; empty and None: all. Raises ApiError 503."""
    question = FindJobs(number="", reply_to="", request_id=request_id, user=user, limit=limit)
    answers = await _ask(watch, question, any_known=False)
    now = time.monotonic()
    reports = [ArrivedReport(answer.report, now) for answer in answers if answer.report is not None]
    return line(reports, now, time.time())


async def act(watch: JobWatch, question: AnyQuestion, request_id: str) -> Answer:
    """Has the node that knows the job do something to it, and returns what it says.

    Raises ApiError 404 if no node knows it, 409 if the node did not do it, 503.
    """
    answer = await _ask_who_knows(watch, question)
    if answer is None:
        await asyncio.sleep(IN_TRANSIT_SECONDS)
        answer = await _ask_who_knows(watch, question)
    if answer is None:
        text = f"no node has the job {request_id[:64]!r}: it has ended, or never was"
        raise ApiError(404, text, code="not_found")
    if not answer.done:
        raise ApiError(409, answer.note or "the node did not do it", code="refused")
    return answer


async def _ask_who_knows(watch: JobWatch, question: AnyQuestion) -> Answer | None:
    for answer in await _ask(watch, question, any_known=True):
        if answer.known:
            return answer
    return None


async def _ask(watch: JobWatch, question: AnyQuestion, *, any_known: bool) -> list[Answer]:
    try:
        return await watch.ask(question, any_known=any_known)
    except Unavailable as error:
        raise ApiError(
            503, f"the nodes cannot be asked now: {error}", code="unavailable"
        ) from error
