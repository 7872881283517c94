"""Canopy over HTTP: whole answers of one token. `python -m … PORT PATH MODEL`; BENCH_KEY: a key."""

import asyncio
import os
import sys

from bench import web
from bench.dispatch import loop


async def main(port: int, path: str, model: str) -> None:
    """Drives until standard input ends. A request takes an idle connection, or opens one."""
    idle: list[web.Connection] = []
    body: dict[str, object] = {"text": "Hello", "timestamp": "1", "max_tokens": 1}
    if path != "/arranca/":
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": model, "messages": messages, "max_tokens": 1}
    request = web.post(path, port, os.environ["BENCH_KEY"], body)

    async def ask() -> None:
        connection = idle.pop() if idle else await web.Connection.open(port)
        await connection.send(request)
        idle.append(connection)

    await loop.serve(ask)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
