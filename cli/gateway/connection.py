"""One client's connection: its key, then its questions, several at a time."""

import asyncio
import contextlib
from contextlib import aclosing
from http import HTTPStatus

from cli.gateway import messages
from cli.gateway.messages import BadLine, Cancel, Question
from cli.gateway.upstream import Api, Refused

KEY_SECONDS = 10.0  # for the first line
IDLE_SECONDS = 900.0  # without a question
WRITE_SECONDS = 30.0  # for a client to take what it gets
PROBE_SECONDS = 1.0  # between empty lines to a client that sends no more
MOST_QUESTIONS = 16  # that one connection has open


class TooSlow(Exception):
    """The client does not read."""


class Connection:
    """`run` serves it to its end. `sender`: the client's address."""

    def __init__(
        self, api: Api, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: str
    ) -> None:
        self._api = api
        self._reader = reader
        self._writer = writer
        self._sender = sender
        self._key = ""
        self.sent_bad_key = False
        self._answers: dict[str, asyncio.Task[None]] = {}  # by the client's id, or one of ours
        self._count = 0
        self._writing = asyncio.Lock()
        self._closing = False

    async def run(self) -> None:
        """Serves the client until it has left."""
        try:
            await self._serve()
        except (ConnectionError, TooSlow):
            pass  # fate: nobody reads any more; its answers are cancelled below
        finally:
            for task in self._answers.values():
                task.cancel()
            await asyncio.gather(*self._answers.values(), return_exceptions=True)

    async def finish(self) -> None:
        """Takes no more questions and returns when the open ones are answered."""
        self._closing = True
        await asyncio.gather(*self._answers.values(), return_exceptions=True)

    async def _serve(self) -> None:
        if not await self._authenticate():
            return
        while (line := await self._next_line()) is not None:
            await self._take(line)
        while self._answers:
            # Only a write tells a client that sends no more (`echo … | nc`) from one that has left.
            await asyncio.wait(self._answers.values(), timeout=PROBE_SECONDS)
            await self._write(b"\n")

    async def _authenticate(self) -> bool:
        """Whether the first line is a key that the API accepts; the client hears why not."""
        try:
            async with asyncio.timeout(KEY_SECONDS):
                line = await self._reader.readline()
            self._key = messages.parse_key(line)
            models = await self._api.models(self._key, self._sender)
        except TimeoutError:
            message = f"the key must come within {KEY_SECONDS:.0f} s"
            await self._write(messages.error("no_key", message))
        except (BadLine, ValueError) as error:
            self.sent_bad_key = True
            await self._write(messages.error("bad_line", str(error)))
        except Refused as refusal:
            self.sent_bad_key = refusal.status == HTTPStatus.UNAUTHORIZED
            await self._write(messages.error(refusal.code, str(refusal)))
        else:
            await self._write(messages.ready(models))
            return True
        return False

    async def _next_line(self) -> bytes | None:
        """The next line that is not empty; None when the client sends no more, or must leave."""
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await self._reader.readline()
            except TimeoutError:
                if self._answers:
                    continue
                await self._write(messages.error("idle", "no question came for a long time"))
                return None
            except ValueError:  # readline's own, for a line beyond the stream's limit
                message = f"a line has at most {messages.MAX_LINE} bytes"
                await self._write(messages.error("bad_line", message))
                return None
            if not line:
                return None
            if line.strip():
                return line

    async def _take(self, line: bytes) -> None:
        try:
            message = messages.parse(line)
        except BadLine as error:
            await self._write(messages.error("bad_line", str(error)))
            return
        if isinstance(message, Cancel):
            await self._cancel(message.cancel)
        else:
            await self._begin(message)

    async def _begin(self, question: Question) -> None:
        self._count += 1
        name = question.id or f" {self._count}"  # no client's id: those that have none differ
        if self._closing:
            problem = ("stopping", "the gateway is stopping; connect again")
        elif name in self._answers:
            problem = ("id_in_use", "an answer with this id is still open")
        elif len(self._answers) >= MOST_QUESTIONS:
            problem = ("too_many", f"at most {MOST_QUESTIONS} questions at a time on a connection")
        else:
            task = asyncio.create_task(self._answer(question), name="answer over a socket")
            self._answers[name] = task
            task.add_done_callback(lambda _: self._answers.pop(name, None))
            return
        await self._write(messages.error(*problem, question.id))

    async def _cancel(self, name: str) -> None:
        task = self._answers.get(name)
        if task is None:
            await self._write(messages.error("not_open", "no answer with this id is open", name))
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._write(messages.cancelled(name))

    async def _answer(self, question: Question) -> None:
        """Relays one answer. A client that has left ends the connection through its reader."""
        answer = self._api.answer(messages.body_of(question), self._key, self._sender)
        try:
            async with aclosing(answer) as lines:
                async for line in lines:
                    relayed = messages.relayed(line, question)
                    if relayed is not None:
                        await self._write(relayed)
        except Refused as refusal:
            await self._write(messages.error(refusal.code, str(refusal), question.id))
        except (ConnectionError, TooSlow):
            self._writer.transport.abort()  # fate: `run` sees the end and cancels the others

    async def _write(self, line: bytes) -> None:
        """Raises ConnectionError or TooSlow."""
        async with self._writing:
            self._writer.write(line)
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._writer.drain()
            except TimeoutError as error:
                raise TooSlow from error


async def close(writer: asyncio.StreamWriter) -> None:
    """Ends the connection, also one that does not answer."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()
