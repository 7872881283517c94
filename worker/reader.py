"""The way from a run to the reader of its job: frames go out, and questions about a restarted job are answered."""

import asyncio

from broker.node import NodePort
from broker.wire import NO_RUN, AnyFrame, Job, ResumeGrant, ResumeRequest

ASK_SECONDS = 5.0  # an answer that does not come is asked for again


class Questions:
    """What this node has asked readers and not heard yet, by run."""

    def __init__(self, node: str, incarnation: str) -> None:
        self.node = node
        self.incarnation = incarnation
        self._open: dict[int, asyncio.Future[ResumeGrant]] = {}

    def answered(self, message: ResumeGrant) -> None:
        """A reader's answer."""
        answer = self._open.get(message.number)
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def ask(self, job: Job, number: int, port: NodePort) -> ResumeGrant:
        """Asks the job's reader where it stands, again and again: an answer is lost with the connection of either."""
        answer: asyncio.Future[ResumeGrant] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        question = ResumeRequest(
            request_id=job.request_id,
            attempt=job.attempt,
            seq=NO_RUN,
            node=self.node,
            incarnation=self.incarnation,
            number=number,
        )
        try:
            while not answer.done():
                port.outbox.put(job.reply_to, question)
                await asyncio.wait({answer}, timeout=ASK_SECONDS)
            return answer.result()
        finally:
            del self._open[number]


class Reader:
    """The reader of one job; see worker.run.Reader."""

    def __init__(self, questions: Questions, job: Job, port: NodePort) -> None:
        self._questions = questions
        self._job = job
        self._port = port

    def send(self, frame: AnyFrame) -> None:
        self._port.outbox.put(self._job.reply_to, frame)

    async def confirm(self, frame: AnyFrame) -> None:
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def confirmed(read: bool) -> None:
            if not sent.done():
                sent.set_result(read)

        self._port.outbox.put(self._job.reply_to, frame, sent=confirmed)
        await sent  # never, if the session is lost first: then this run is abandoned

    async def ask(self, number: int) -> ResumeGrant:
        return await self._questions.ask(self._job, number, self._port)

    async def flowing(self) -> None:
        if self._port.session.blocked:
            await self._port.session.flowing.wait()
