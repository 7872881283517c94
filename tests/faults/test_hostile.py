"""Hostile requests and broken surroundings: innocent requests are neither lost nor held up.

They are printed as a table of their own at the end of the run.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from broker.amqp import AmqpSession
from broker.wire import Capacity, NodeState, encode
from cli.home import REPOSITORY
from tests.faults.disk import fill, small_disk
from tests.faults.hostile import HostileRow
from tests.faults.innocents import Innocents
from tests.instance import Instance, running
from tests.realbroker import NodeProcess
from topology import names

MODEL = "gemma-3-270m"
UNDISTURBED = 3  # answers a reader, before a fault
BESIDE = 3  # at least, beside it
# Longest pause of an innocent stream. The goal is 0.25 s; here other tests run beside it.
PAUSE_SECONDS = 1.5
CROWDED = 5.0  # times its undisturbed pause, if that is more
FLOOD = 1000  # jobs
SKEW = 7200.0  # seconds
RECOVERY_SECONDS = 60.0

pytestmark = pytest.mark.timeout(300)  # the first time, the model is converted on the way


@dataclass(frozen=True)
class Site:
    """An instance, and who asks it: `stranger` is another user than the innocent ones."""

    instance: Instance
    innocents: Innocents
    stranger: httpx.AsyncClient
    model: str
    folder: Path  # which the home is in


Attack = Callable[[Site], Awaitable[None]]


# ---- where


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Two nodes with the packaged model; what `./canopy up` starts."""
    home = tmp_path_factory.mktemp("hostile-gemma")
    models = Path(os.environ.get("CANOPY_TEST_MODELS") or REPOSITORY / "var" / "models")
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models.resolve())
    with running(home, "--model", MODEL) as instance:
        instance.add_people(stranger=False)
        yield instance


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


async def _site(instance: Instance, model: str, tokens: int) -> AsyncIterator[Site]:
    limits = httpx.Limits(max_connections=None)
    bearer = {"Authorization": f"Bearer {instance.key('stranger')}"}
    async with (
        Innocents(instance.url, instance.key(), model, tokens) as innocents,
        httpx.AsyncClient(
            base_url=instance.url, headers=bearer, limits=limits, timeout=120
        ) as stranger,
    ):
        yield Site(instance, innocents, stranger, model, instance.home.parent)


@pytest_asyncio.fixture
async def model_site(gemma: Instance) -> AsyncIterator[Site]:
    async for site in _site(gemma, MODEL, tokens=24):
        yield site


@pytest_asyncio.fixture
async def echo_site(echo: Instance) -> AsyncIterator[Site]:
    async for site in _site(echo, "echo", tokens=40):
        yield site


# ---- one hostile request


async def token(site: Site) -> None:
    """Bytes that never make a character, in turn."""
    body = {
        "model": site.model,
        "prompt": "⬂⬂⬂⬂",
        "max_tokens": 60,
        "logit_bias": {"464": 100, "236743": 100},
        "temperature": 2,
        "seed": 100,
    }
    answer = await site.stranger.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


async def prompt(site: Site) -> None:
    """As long as a body may be."""
    body = {"model": site.model, "prompt": "many words " * 86_000, "max_tokens": 4}
    answer = await site.stranger.post("/v1/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def system_messages(site: Site) -> None:
    """Hundreds of leading turns, which make a long prompt."""
    turns = [{"role": "system", "content": f"Rule {number}."} for number in range(400)]
    messages = [*turns, {"role": "user", "content": "Hello"}]
    answer = await site.stranger.post(
        "/v1/chat/completions", json={"model": site.model, "messages": messages, "max_tokens": 4}
    )
    assert answer.status_code in (200, 400), answer.text


async def name(site: Site) -> None:
    """Of a model, too long for the broker; and, after it, one that is only unknown."""
    for model in ("模" * 90, "nosuch"):
        body = {"model": model, "prompt": "x", "max_tokens": 4}
        answer = await site.stranger.post("/v1/completions", json=body)
        assert answer.status_code == 404, answer.text


async def h2c(site: Site) -> None:
    """A body in a second packet that looks like a request, after an Upgrade that is not taken."""
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(smuggled)}\r\n\r\n"
    )
    reader, writer = await _connect(site)
    writer.write(head.encode())
    await writer.drain()
    await asyncio.sleep(
        0.1
    )  # a second packet, not the same one: nothing tells when the first was read
    writer.write(smuggled)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        said = await reader.read()
    writer.close()
    assert said.count(b"HTTP/1.1 ") == 2, said  # the refusal, and /healthz


async def headers(site: Site) -> None:
    """Fifty megabytes of them on each of four connections, without a key."""
    await asyncio.gather(*(_endless_headers(site, 50_000_000) for _ in range(4)))


async def _endless_headers(site: Site, size: int) -> None:
    _, writer = await _connect(site)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
    sent = 0
    line = b"X-Filler: " + b"x" * 8000 + b"\r\n"
    try:
        while sent < size:
            writer.write(line)
            await writer.drain()
            sent += len(line)
    except ConnectionError:
        pass  # as it should be
    writer.close()
    assert sent < size, "nothing stopped them"


async def _connect(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(site.instance.url)
    return await asyncio.open_connection(address.hostname, address.port)


# ---- one hostile number, clock or crowd


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
    async with asyncio.timeout(RECOVERY_SECONDS):
        while (await site.stranger.get("/readyz")).status_code != 503:  # noqa: ASYNC110 - asked, it tells
            await asyncio.sleep(0.1)
    answer = await _chat(site, "again", words=4)
    ballast.unlink()
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
    reader, writer = await _connect(site)
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


async def beside(site: Site, attack: Attack, record: Callable[[HostileRow], None]) -> HostileRow:
    """Innocent requests, first alone and then beside the attack."""
    quiet = await site.innocents.ask(UNDISTURBED)
    struck = await site.innocents.beside(attack(site), BESIDE)
    row = HostileRow(attack.__name__, (attack.__doc__ or "").rstrip("."), struck, quiet)
    record(row)
    assert quiet.lost == []
    assert struck.lost == []
    return row


def nobody_was_refused(row: HostileRow) -> bool:
    """Only a full disk is a reason not to take a request."""
    return row.beside.refused == [] and row.quiet.refused == []


@pytest.mark.parametrize("attack", [token, prompt, system_messages, name, h2c, headers])
async def test_one_request_harms_itself_alone(
    attack: Attack, model_site: Site, record_hostile: Callable[[HostileRow], None]
) -> None:
    row = await beside(model_site, attack, record_hostile)
    assert nobody_was_refused(row)
    assert row.beside.pause <= max(PAUSE_SECONDS, CROWDED * row.quiet.pause)


@pytest.mark.parametrize("attack", [counters, clock, flood, frozen])
async def test_no_number_clock_or_crowd_harms_others(
    attack: Attack, echo_site: Site, record_hostile: Callable[[HostileRow], None]
) -> None:
    assert nobody_was_refused(await beside(echo_site, attack, record_hostile))


async def test_a_full_disk_harms_nobody_for_good(
    echo_site: Site, record_hostile: Callable[[HostileRow], None]
) -> None:
    await beside(echo_site, disk, record_hostile)
