"""Node processes whose wall clocks are hours off, or jump while they run: no job notices."""

import asyncio
import time
from pathlib import Path

import pytest

from broker.client import Client
from broker.stream import Stream
from broker.wire import ChatMessage, Finished, Job, Sampling
from cli.rabbitmq import Broker
from tests.realbroker import NodeProcess

SECONDS = 30.0
JOBS = 40
CLOCKS = {
    "ahead": "lambda: real() + 7200",
    "behind": "lambda: real() - 7200",
    "jumping": "lambda: real() + (7200 if int(real() * 2) % 2 else -7200)",  # every half second
}


def with_clock(folder: Path, clock: str) -> dict[str, str]:
    """The environment of a process whose time.time is that expression."""
    (folder / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = {CLOCKS[clock]}\n"
    )
    return {"PYTHONPATH": str(folder)}


async def ask(client: Client, number: int) -> Stream:
    return await client.submit(
        Job(
            request_id=f"clock-{time.monotonic_ns()}-{number}",
            model="echo",
            reply_to="",
            created=time.time(),
            messages=(ChatMessage(role="user", content="one two three four five six"),),
            sampling=Sampling(max_tokens=6),
            seconds_left=60.0,
        )
    )


async def end(stream: Stream) -> object:
    async with asyncio.timeout(SECONDS):
        return [frame async for frame in stream][-1]


@pytest.mark.parametrize("clock", CLOCKS)
async def test_no_wall_clock_of_a_node_ends_a_job(
    broker: Broker, client: Client, tmp_path: Path, clock: str
) -> None:
    env = with_clock(tmp_path, clock)
    engine = ("--model", "echo", "--engine", "echo", "--slots", "2", "--token-delay", "0.05")
    with (
        NodeProcess(broker, "root", "--model", "echo", "--engine", "none", env=env),
        NodeProcess(broker, "n1", "--parent", "root", *engine, env=env),
        NodeProcess(broker, "n2", "--parent", "root", *engine),
    ):
        ends = await asyncio.gather(*[end(await ask(client, number)) for number in range(JOBS)])
        assert [type(each) for each in ends] == [Finished] * JOBS
        assert {"root", "n1", "n2"} <= set(client.nodes())
        differences = client.clock_differences()
        assert abs(differences["n1"]) > 7000
        assert abs(differences["n2"]) < 2
