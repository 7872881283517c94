"""Submits jobs to the tree root -> n1 -> n2, with the client of the release it is started in.

Prints one line of JSON: the answers of some jobs, and how one ended that was cancelled. It may use
only what both releases have.
"""

import asyncio
import json
import sys
import time
import uuid

from broker.client import Client
from broker.stream import Stream
from broker.wire import Delta, Finished, Job

SECONDS = 30.0


async def submit(client: Client, prompt: str) -> Stream:
    return await client.submit(
        Job(
            request_id=uuid.uuid4().hex,
            model="echo",
            reply_to="",
            created=time.time(),
            prompt=prompt,
            user="ada",
        )
    )


async def until_tree_is_complete(client: Client) -> None:
    while not client.connected:
        await client.changed()
    while "n1" not in client.nodes() or client.nodes()["n1"].children != ("n2",):
        await client.changed()


async def read(stream: Stream) -> str:
    return "".join([frame.text async for frame in stream if isinstance(frame, Delta)])


async def cancel_one(client: Client) -> str:
    """The reason with which a long job ends that is cancelled after its first text."""
    stream = await submit(client, "word " * 3000)
    async for frame in stream:
        if isinstance(frame, Delta):
            client.cancel(stream.request_id, "ada")
            break
    await read(stream)
    return stream.end.reason if isinstance(stream.end, Finished) else repr(stream.end)


async def until_nothing_runs(client: Client) -> int:
    while running := sum(state.running for state in client.nodes().values()):
        await client.changed()
    return running


async def main(amqp_url: str) -> None:
    client = Client(amqp_url)
    await client.start()
    async with asyncio.timeout(SECONDS):
        await until_tree_is_complete(client)
        streams = [await submit(client, f"request {number} of several") for number in range(6)]
        answers = [await read(stream) for stream in streams]
        nodes = sorted({stream.node for stream in streams})
        cancelled = await cancel_one(client)
        running = await until_nothing_runs(client)
    await client.stop()
    outcome = {"answers": answers, "nodes": nodes, "cancelled": cancelled, "running": running}
    print(json.dumps(outcome))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
