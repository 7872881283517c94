"""Lies, wrong clocks, crowds, frozen nodes, a full disk: innocent requests are not lost.

They are printed as a table of their own at the end of the run.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from broker.amqp import AmqpSession
from broker.encoding import encode
from broker.node_state import NodeState
from broker.wire import Capacity
from cli.home import REPOSITORY
from tests.faults.disk import fill, small_disk
from tests.faults.hostile import HostileRow
from tests.faults.hostile_site import Attack, Site, beside, connect, nobody_was_refused, open_site
from tests.instance import Instance, running
from tests.realbroker import NodeProcess
from topology import names

FLOOD = 1000  # jobs
SKEW = 7200.0  # seconds
RECOVERY_SECONDS = 60.0
ANSWERED_SECONDS = 5.0  # or later

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> n1 -> n2, n3, two slots each, fifty words a second, on a disk that can be filled."""
    options = "--engine echo --nodes 3 --fanout 2 --slots 2 --token-delay 0.02"
    env = {"CANOPY_FROZEN_SECONDS": "20"}  # more than the broker needs to notice a frozen node
    with (
        small_disk(tmp_path_factory.mktemp("hostile") / "disk") as folder,
        running(folder / "home", *options.split(), env=env) as instance,
    ):
        instance.add_people(stranger=False)
        yield instance


@pytest_asyncio.fixture
async def echo_site(echo: Instance) -> AsyncIterator[Site]:
    async for site in open_site(echo, "echo", tokens=40):
        yield site


# ---- what happens


async def counters(site: Site) -> None:
    """A child with more free slots than slots, and a ghost that holds a million jobs."""
    session = await AmqpSession.open(site.instance.broker.amqp["node"], "liar")
    ghost = NodeState(
        name="ghost",
        parent="root",
        children=(),
        model=site.model,
        engine="echo",
        device="",
        policy="hold-high",
        status="busy",
        slots=4,
        running=4,
        held=1_000_000,
        received=0,
        finished=0,
        tokens=0,
        host="nowhere",
        pid=1,
        started=0.0,
        sent=0.0,
    )
    lies = [
        Capacity(
            node="n1",
            incarnation="liar",
            number=1,
            slots=2,
            free=10**9,
            received=-5,
            finished=-(10**12),
        ),
        Capacity(
            node="n8", incarnation="liar", number=2, slots=-1, free=-1, received=0, finished=0
        ),
        Capacity(
            node="n9",
            incarnation="liar",
            number=2,
            slots=10**12,
            free=10**12,
            received=0,
            finished=10**15,
        ),
    ]
    try:
        for lie in lies:
            await session.publish("", names.inbox("root"), encode(lie))
        await session.publish(names.EVENTS_EXCHANGE, names.state_key("ghost"), encode(ghost))
    finally:
        await session.close()


async def clock(site: Site) -> None:
    """Of a node that is two hours ahead; it has many free slots, so that it gets jobs."""
    options = "--parent n1 --model echo --engine echo --slots 8 --token-delay 0.02"
    ahead = {
        "PYTHONPATH": str(REPOSITORY / "tests" / "faults" / "skewed"),
        "SKEW_SECONDS": str(SKEW),
    }
    node = NodeProcess(site.instance.broker, "ahead", *options.split(), env=ahead)
    try:
        await asyncio.to_thread(node.wait_ready)
        asked = [_chat(site, "one two three", words=3) for _ in range(40)]
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
    finally:
        await asyncio.to_thread(node.__exit__)


async def frozen(site: Site) -> None:
    """A node that does nothing any more, in the midst of its jobs."""
    victim = _pid(site, "n2")
    os.kill(victim, signal.SIGSTOP)
    async with asyncio.timeout(RECOVERY_SECONDS):
        while _pid(site, "n2") == victim:  # noqa: ASYNC110 - the launcher's record tells no events
            await asyncio.sleep(0.1)


async def disk(site: Site) -> None:
    """That is full for a while: nothing can be stored."""
    ballast = fill(site.folder)
    try:
        async with asyncio.timeout(RECOVERY_SECONDS):
            while (await site.stranger.get("/readyz")).status_code != 503:  # noqa: ASYNC110 - asked, it tells
                await asyncio.sleep(0.1)
        asking = asyncio.create_task(_chat(site, "again", words=4))
        # a broker that could not write has ended: it answers what it took once the disk has room
        await asyncio.wait([asking], timeout=ANSWERED_SECONDS)
    finally:
        ballast.unlink()
    answer = await asking
    assert answer.status_code in (200, 503), answer.text
    async with asyncio.timeout(RECOVERY_SECONDS):
        while (await site.stranger.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - asked, it tells
            await asyncio.sleep(0.1)


async def flood(site: Site) -> None:
    """A thousand jobs of one user, who wants to wait."""
    messages = [{"role": "user", "content": "again"}]
    body = {"model": site.model, "messages": messages, "max_tokens": 4, "service_tier": "flex"}
    request = site.stranger.build_request(
        "POST", "/v1/chat/completions", json=body, headers={"Connection": "close"}
    )
    lines = [f"POST {request.url.path} HTTP/1.1".encode()]
    lines += [name + b": " + value for name, value in request.headers.raw]
    content = b"\r\n".join([*lines, b"", request.content])
    statuses = await asyncio.gather(*(_status(site, content) for _ in range(FLOOD)))
    assert set(statuses) <= {200, 429}


async def _status(site: Site, request: bytes) -> int:
    """A request on its own connection, as a pool of a thousand would slow down the measurement."""
    reader, writer = await connect(site)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


async def _chat(site: Site, content: str, words: int, **more: Any) -> httpx.Response:
    body = {
        "model": site.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": words,
        **more,
    }
    return await site.stranger.post("/v1/chat/completions", json=body)


def _pid(site: Site, process: str) -> int:
    pids = {each["name"]: each["pid"] for each in site.instance.record()["processes"]}
    return int(pids.get(process, 0))


# ---- what innocent requests notice


@pytest.mark.parametrize("attack", [counters, clock, flood, frozen])
async def test_no_number_clock_or_crowd_harms_others(
    attack: Attack, echo_site: Site, record_hostile: Callable[[HostileRow], None]
) -> None:
    assert nobody_was_refused(await beside(echo_site, attack, record_hostile))


async def test_a_full_disk_harms_nobody_for_good(
    echo_site: Site, record_hostile: Callable[[HostileRow], None]
) -> None:
    await beside(echo_site, disk, record_hostile)
