"""One hostile request harms itself alone: innocent ones are neither lost nor held up.

They are printed as a table of their own at the end of the run.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from cli.home import REPOSITORY
from tests.faults.hostile import HostileRow
from tests.faults.hostile_site import Attack, Site, beside, connect, nobody_was_refused, open_site
from tests.instance import MODEL_SECONDS, Instance, running

MODEL = "smollm2-135m-instruct"
LONE_BYTES = ("218", "250")  # its tokens for the bytes 0x80 and 0xAD, which begin no character
# Longest pause of an innocent stream. The goal is 0.25 s; this machine has few cores.
PAUSE_SECONDS = 2.5
CROWDED = 5.0  # times its undisturbed pause, if that is more

pytestmark = [
    pytest.mark.alone,
    pytest.mark.timeout(300),  # the first time, the model is converted on the way
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One node with the default model, which innocent and hostile requests share."""
    home = tmp_path_factory.mktemp("hostile-model")
    models = Path(os.environ.get("CANOPY_TEST_MODELS") or REPOSITORY / "var" / "models")
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models.resolve())
    threads = {"CANOPY_THREADS": "1"}  # two would wait for each other on cores that others use
    options = ["--model", MODEL, "--nodes", "1"]
    with running(home, *options, env=threads, within=MODEL_SECONDS) as instance:
        instance.add_people(stranger=False)
        yield instance


@pytest_asyncio.fixture
async def model_site(smollm2: Instance) -> AsyncIterator[Site]:
    async for site in open_site(smollm2, MODEL, tokens=12):
        yield site


# ---- the requests


async def token(site: Site) -> None:
    """Bytes that never make a character, in turn."""
    body = {
        "model": site.model,
        "prompt": "⬂⬂⬂⬂",
        "max_tokens": 60,
        "logit_bias": dict.fromkeys(LONE_BYTES, 100),
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
    turns = [{"role": "system", "content": f"Rule {number}."} for number in range(200)]
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
    reader, writer = await connect(site)
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
    _, writer = await connect(site)
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


# ---- what innocent requests notice


@pytest.mark.parametrize("attack", [token, prompt, system_messages, name, h2c, headers])
async def test_one_request_harms_itself_alone(
    attack: Attack, model_site: Site, record_hostile: Callable[[HostileRow], None]
) -> None:
    row = await beside(model_site, attack, record_hostile)
    assert nobody_was_refused(row)
    assert row.beside.pause <= max(PAUSE_SECONDS, CROWDED * row.quiet.pause)
