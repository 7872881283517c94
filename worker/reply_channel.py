"""The way from a run to the reader of its job: frames go out, and restarted jobs are resumed."""

import asyncio

from broker.wire import NO_RUN, AnyFrame, Job, ResumeGrant, ResumeRequest
from worker.broker_link import BrokerLink

ASK_SECONDS = 5.0  # a request without an answer is repeated


class ResumeRequests:
    """This node's open requests to resume restarted jobs, by run."""

    def __init__(self, node: str, incarnation: str, link: BrokerLink) -> None:
        self._node = node
        self._incarnation = incarnation
        self._link = link
        self._open: dict[int, asyncio.Future[ResumeGrant]] = {}

    def on_grant(self, grant: ResumeGrant) -> None:
        """A reader's answer."""
        answer = self._open.get(grant.number)
        if answer is not None and not answer.done():
            answer.set_result(grant)

    async def ask(self, job: Job, number: int) -> ResumeGrant:
        """Asks the job's reader where to continue.

        Repeats the request, as answers are lost with either side's connection.
        """
        answer: asyncio.Future[ResumeGrant] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        request = ResumeRequest(
            request_id=job.request_id,
            attempt=job.attempt,
            seq=NO_RUN,
            node=self._node,
            incarnation=self._incarnation,
            number=number,
        )
        port = self._link.port
        try:
            while not answer.done():
                port.outbox.put(job.reply_to, request, token=job.reply_token)
                await asyncio.wait({answer}, timeout=ASK_SECONDS)
            return answer.result()
        finally:
            del self._open[number]


class BrokerReplyChannel:
    """The reply channel of one job, on the session in which its run began."""

    def __init__(self, requests: ResumeRequests, job: Job, link: BrokerLink) -> None:
        self._requests = requests
        self._job = job
        self._port = link.port

    def send(self, frame: AnyFrame) -> None:
        job = self._job
        self._port.outbox.put(job.reply_to, frame, token=job.reply_token)

    async def confirm(self, frame: AnyFrame) -> None:
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def sent(read: bool) -> None:
            if not confirmed.done():
                confirmed.set_result(read)

        job = self._job
        self._port.outbox.put(job.reply_to, frame, sent=sent, token=job.reply_token)
        await confirmed  # never, if the session is lost first: then this run is abandoned

    async def request_resume(self, number: int) -> ResumeGrant:
        return await self._requests.ask(self._job, number)

    async def flowing(self) -> None:
        if self._port.session.blocked:
            await self._port.session.flowing.wait()
