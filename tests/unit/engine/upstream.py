"""A scripted OpenAI-compatible server, over real HTTP on loopback."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

DONE = b"data: [DONE]\n\n"
CHUNKED = "Transfer-Encoding: chunked"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Reply:
    """The way back to one client. `gone` is set when it has closed the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.gone = asyncio.Event()
        self._watch = asyncio.create_task(self._until_gone(reader))

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.gone.set()

    async def whole(self, status: int, body: Any, *headers: str) -> None:
        """An answer in one piece: JSON, or text as it is."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = ["Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
        await self._send(
            f"HTTP/1.1 {status} Status\r\n" + "".join(f"{line}\r\n" for line in head) + "\r\n",
            content,
        )

    async def begin(self, content_type: str = "text/event-stream") -> None:
        """The head of a stream."""
        await self._send(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{CHUNKED}\r\n\r\n")

    async def write(self, content: bytes) -> None:
        """One piece of the stream."""
        await self._send(f"{len(content):x}\r\n", content, b"\r\n")

    async def say(self, *texts: str, **more: Any) -> None:
        """An event for each text, of a dialogue's answer."""
        for text in texts:
            await self.write(
                event(
                    choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}],
                    **more,
                )
            )

    async def finish(self, reason: str = "stop", usage: tuple[int, int] | None = None) -> None:
        """The end of the answer, with the usage if there is one."""
        await self.write(event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}]))
        if usage is not None:
            counts = {
                "prompt_tokens": usage[0],
                "completion_tokens": usage[1],
                "total_tokens": sum(usage),
            }
            await self.write(event(choices=[], usage=counts))
        await self.write(DONE)
        await self.end()

    async def end(self) -> None:
        """The tidy end of the stream."""
        await self._send("0\r\n\r\n")

    async def _send(self, head: str, *rest: bytes) -> None:
        self._writer.write(head.encode() + b"".join(rest))
        await self._writer.drain()

    async def close(self) -> None:
        """Closes the connection, tidy or not."""
        self._writer.close()
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)


Script = Callable[[Asked, Reply], Awaitable[None]]


def event(**fields: Any) -> bytes:
    """One server-sent event."""
    return (
        f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', **fields})}\n\n".encode()
    )


def answering(*texts: str, reason: str = "stop", usage: tuple[int, int] | None = (5, 3)) -> Script:
    """A script: these texts, then the end."""

    async def script(asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.say(*texts)
        await reply.finish(reason, usage)

    return script


def refusing(status: int, body: Any, *headers: str) -> Script:
    """A script: no answer."""

    async def script(asked: Asked, reply: Reply) -> None:
        await reply.whole(status, body, *headers)

    return script


class Upstream:
    """The server. `scripts` answer the requests for text in turn, the last one all that follow."""

    def __init__(self, *scripts: Script, models: Script | None = None) -> None:
        self.scripts = list(scripts)
        self.models = models or listing("far")
        self.asked: list[Asked] = []
        self.running = 0
        self.most = 0  # requests at the same time
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        reply = None
        try:
            request = await _read(reader)
            reply = Reply(reader, writer)
            if request.path == "/v1/models":
                await self.models(request, reply)
                return
            self.asked.append(request)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await (self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0])(
                    request, reply
                )
            finally:
                self.running -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            self._tasks.discard(task)
            if reply is not None:
                await reply.close()
            writer.close()

    async def __aenter__(self) -> "Upstream":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    def close(self) -> None:
        """Nobody listens any more."""
        assert self._server is not None
        self._server.close()

    async def __aexit__(self, *_: object) -> None:
        self.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def listing(*names: str, owner: str = "somebody") -> Script:
    """A script for the list of models."""
    data = [{"id": name, "object": "model", "owned_by": owner} for name in names]
    return refusing(200, {"object": "list", "data": data})


async def _read(reader: asyncio.StreamReader) -> Asked:
    method, path, _ = (await reader.readline()).decode().split()
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(content) if content else {})


@asynccontextmanager
async def nobody() -> AsyncIterator[str]:
    """An address where nobody listens."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    yield f"http://127.0.0.1:{port}/v1"
