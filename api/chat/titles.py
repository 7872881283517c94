"""Titles that the model gives to conversations, in the class of jobs that delays no answer.

Until there is one, and where the model gives none, the first message's beginning stays.
"""

import asyncio
import re

import structlog
from django.db import DatabaseError

from api.answers.record import Status, StoredAnswer
from api.chat.history import TITLE_CHARACTERS
from api.chat.models import Conversation, Message, Role, TitledBy
from api.errors import ApiError
from api.events.hub import Hub
from api.plans import plans
from api.requests.build import chat_job
from api.requests.parts import without_reasoning
from api.requests.reading import AnswerReader, Collected
from api.requests.submit import Submitter
from broker.client import Client
from broker.errors import BrokerError
from broker.wire import ChatMessage, Sampling

WAITING_AT_MOST = 50  # conversations; further ones keep their first words
SECONDS = 120.0  # for a title, its wait included
_QUOTED = 600  # characters of the question and of the answer that the model sees
_SAMPLING = Sampling(max_tokens=20, temperature=0.2)
_REQUEST = (
    "Write a title of two to six words for this conversation, in its language. "
    "Only the title, without quotation marks.\n\nUser: {question}\n\nAssistant: {answer}"
)
_PREFIX = re.compile(r"^(?:title|título|标题)\s*[:：]\s*", re.IGNORECASE)
_AROUND = " \t\"'`*_#.,:;«»“”「」《》"
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)

log = structlog.get_logger("canopy.api")


class Titles:
    """Asks for titles in the background. Nothing waits for them."""

    def __init__(self, client: Client, submitter: Submitter, hub: Hub) -> None:
        self._client = client
        self._submitter = submitter
        self._hub = hub
        self._tasks: set[asyncio.Task[None]] = set()

    def answer_ended(self, answer: StoredAnswer) -> None:
        """Begins to find a title if this was a conversation's first answer."""
        if not isinstance(answer, Message) or answer.status != Status.DONE or not answer.content:
            return
        if answer.beside is not None or len(self._tasks) >= WAITING_AT_MOST:
            return
        task = asyncio.create_task(self._give(answer), name=f"title of {answer.conversation_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Gives up on the titles that are not there yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _give(self, answer: Message) -> None:
        plans.current.set(None)  # nobody asked for it: it counts for no plan
        try:
            async with asyncio.timeout(SECONDS):
                await self._give_in_time(answer)
        except (TimeoutError, ApiError, BrokerError, DatabaseError) as error:
            # fate: the conversation keeps its first words
            log.info("no title", conversation=answer.conversation_id, reason=str(error))

    async def _give_in_time(self, answer: Message) -> None:
        rows = Conversation.objects.filter(pk=answer.conversation_id, titled_by="")
        conversation = await rows.select_related("user").afirst()
        if conversation is None or self._repeats(conversation.model):
            return
        questions = Message.objects.filter(conversation=conversation, role=Role.USER)
        first = await questions.afirst()
        if first is None or await questions.acount() != 1:
            return
        question = first.content.strip() or first.prompt
        said = without_reasoning(answer.content, answer.reasoning_format)
        text = _REQUEST.format(question=question[:_QUOTED], answer=said[:_QUOTED])
        title = title_from_answer(await self._answer(conversation, text))
        if title is None:
            return
        if await rows.aupdate(title=title, titled_by=TitledBy.MODEL):
            self._hub.publish(conversation.user_id, conversation.pk)

    def _repeats(self, model: str) -> bool:
        """Whether nodes of that model run the echo engine, which has no titles to give."""
        states = self._client.nodes().values()
        return any(state.engine == "echo" for state in states if state.model == model)

    async def _answer(self, conversation: Conversation, text: str) -> str:
        """Raises ApiError if the job is refused."""
        job = chat_job(
            conversation.model,
            [ChatMessage(role="user", content=text)],
            _SAMPLING,
            conversation.user,
            job_class="batch",
            truncate=True,
        )
        stream = await self._submitter.submit(job)
        reader, answer = AnswerReader(job), Collected()
        try:
            async for frame in stream:
                answer.add(reader.take(frame))
        finally:
            await stream.aclose()
        return answer.text  # without what the model thought


def title_from_answer(text: str) -> str | None:
    """The title that a model wrote; None if that is no title."""
    lines = _THOUGHTS.sub("", text).strip().splitlines()
    if not lines or lines[0].startswith("```"):  # the name of a language is no title
        return None
    title = _PREFIX.sub("", lines[0].strip(_AROUND)).strip(_AROUND)
    title = " ".join(title.split())
    if not title or len(title) > TITLE_CHARACTERS:
        return None
    return title
