"""Webhooks: signed, tried again, and never into a private network."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpcore
import httpx
import openai
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError

from api.accounts import keys
from api.context import app
from api.jobs import runner, store, webhooks
from api.jobs.models import StoredJob
from api.server import background
from api.webhooks import sender, signature
from api.webhooks.addresses import ForbiddenAddress, GuardedNetwork, check_url, is_public
from api.webhooks.sender import SendFailed, WebhookSender
from tests.listening import listening
from tests.unit.api_site import FakeClient, browser, make_user
from tests.unit.test_api_stored_jobs import made, when


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1",
        "::ffff:127.0.0.1", "::ffff:10.1.1.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "gopher://x", "//x", "http://", "http://x:0/", "http://x:99999/",
        "http://x y/", "http://a@b/", "http://127.0.0.1/", "http://[::1]/", "http://localhost/",
        "http://x.localhost/", "http://é/", "http://x/" + "a" * 2000, "http://x/\n",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        check_url(url, ())


def test_hosts_that_operators_allow() -> None:
    check_url("http://localhost:9/", {"localhost"})
    check_url("https://example.org/hook?x=1", ())


async def test_what_a_name_resolves_to_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if only one of its addresses is private."""
    loop = asyncio.get_running_loop()

    async def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.215.14", 80)), (2, 1, 6, "", ("10.0.0.7", 80))]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    with pytest.raises(ForbiddenAddress, match="CANOPY_WEBHOOK_HOSTS"):
        await GuardedNetwork(()).connect_tcp("innocent.example", 80)
    with pytest.raises(SendFailed) as failed:
        await WebhookSender(()).send("http://innocent.example/", "x" * 20, "msg", b"{}")
    assert failed.value.permanent


async def test_numbers_in_other_forms_are_resolved_first() -> None:
    """2130706433 and 0x7f.1 are 127.0.0.1 to a resolver."""
    for host in ("2130706433", "0x7f.1"):
        with pytest.raises((ForbiddenAddress, httpcore.ConnectError)):
            await GuardedNetwork(()).connect_tcp(host, 80)


@pytest.mark.parametrize("secret", ["short", "whsec_!!!", "whsec_YQ==", "x" * 129])
def test_secrets_that_are_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r"base64|bytes"):
        signature.key_of(secret)


def test_there_are_so_many_tries() -> None:
    waits = [webhooks.again(attempts) for attempts in range(1, 12)]
    assert waits[0] == timedelta(seconds=5)
    assert waits[8] is not None and waits[9:] == [None, None]
    assert sum(webhooks.AFTER) < 86_400


class Hook:
    """A server that answers webhooks with `statuses`, the last one for ever."""

    def __init__(self) -> None:
        self.statuses = [200]
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.arrived = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(each.split(": ", 1) for each in head.split("\r\n")[1:] if each)
        headers = {name.lower(): value for name, value in fields.items()}
        body = await reader.readexactly(int(headers["content-length"]))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        location = "Location: http://127.0.0.1:1/\r\n" if status == 302 else ""
        writer.write(f"HTTP/1.1 {status} x\r\n{location}Content-Length: 0\r\n\r\n".encode())
        self.received.append((headers, body))
        self.arrived.set()
        writer.close()


@pytest.fixture
async def hook(fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hook]:
    """Operators have allowed it."""
    monkeypatch.setattr(runner, "EVERY", 0.02)
    monkeypatch.setattr(webhooks, "EVERY", 0.02)
    monkeypatch.setattr(webhooks, "AFTER", (0.01, 0.01))
    hook = Hook()
    monkeypatch.setattr(app().webhooks.sender, "exempt", {"127.0.0.1"})
    async with listening(hook.serve) as hook.port:
        yield hook
    await StoredJob.objects.all().adelete()


async def delivery(program: httpx.AsyncClient, job: dict[str, Any], status: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            now = (await program.get(f"/v1/jobs/{job['id']}")).json()
            if now["webhook"]["status"] == status:
                return now["webhook"]
            await asyncio.sleep(0.01)


async def test_the_end_of_a_job_is_sent_and_signed(program: httpx.AsyncClient, hook: Hook) -> None:
    job = await made(program, webhook={"url": f"http://127.0.0.1:{hook.port}/hook"})
    secret = job["webhook"]["secret"]
    await when(program, job, "completed")
    await delivery(program, job, "delivered")
    [(headers, body)] = hook.received
    client = openai.OpenAI(api_key="x", webhook_secret=secret)
    client.webhooks.verify_signature(body, headers, secret=secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body + b" ", headers, secret=secret)
    message = httpx.Response(200, content=body).json()
    assert message["type"] == "job.completed"
    assert message["data"]["result"]["body"]["choices"][0]["message"]["content"] == "one two three"
    shown = (await program.get(f"/v1/jobs/{job['id']}")).json()["webhook"]
    assert shown["secret"] is None


async def test_it_is_tried_again_under_one_id(program: httpx.AsyncClient, hook: Hook) -> None:
    hook.statuses = [500, 302, 204]
    job = await made(program, webhook={"url": f"http://127.0.0.1:{hook.port}/"})
    shown = await delivery(program, job, "delivered")
    assert (shown["attempts"], shown["error"]) == (3, None)
    assert len({headers["webhook-id"] for headers, _ in hook.received}) == 1


async def test_it_is_given_up(program: httpx.AsyncClient, hook: Hook) -> None:
    hook.statuses = [500]
    job = await made(program, webhook={"url": f"http://127.0.0.1:{hook.port}/"})
    shown = await delivery(program, job, "failed")
    assert (shown["attempts"], shown["error"]) == (3, "the response's status was 500")


async def test_nobody_is_waited_for(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "SECONDS", 0.05)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(silent) as port:
        with pytest.raises(SendFailed, match="within"):
            await app().webhooks.sender.send(f"http://127.0.0.1:{port}/", "x" * 20, "m", b"{}")


async def test_a_secret_without_a_key_is_refused(program: httpx.AsyncClient) -> None:
    webhook = {"url": "https://example.org/", "secret": "\x00" * 16}
    new = {"endpoint": "/v1/score", "body": {}, "webhook": webhook}
    answer = await program.post("/v1/jobs", json=new)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "webhook.secret")


async def test_one_that_cannot_be_signed_stops_no_other(
    program: httpx.AsyncClient, hook: Hook
) -> None:
    url = f"http://127.0.0.1:{hook.port}/"
    bad, good = await made(program, webhook={"url": url}), await made(program, webhook={"url": url})
    await StoredJob.objects.filter(name=bad["id"].removeprefix("job_")).aupdate(webhook_secret="")
    await delivery(program, good, "delivered")
    shown = await delivery(program, bad, "failed")
    assert "cannot be signed" in shown["error"]


async def test_a_database_that_is_away_stops_no_other(
    program: httpx.AsyncClient, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered, failures = store.delivered, iter([DatabaseError("the disk is full")])

    async def away_once(job: StoredJob) -> None:
        for error in failures:
            raise error
        await delivered(job)

    monkeypatch.setattr(store, "delivered", away_once)
    monkeypatch.setattr(background, "RETRY_SECONDS", 60.0)
    url = f"http://127.0.0.1:{hook.port}/"
    await made(program, webhook={"url": url})
    async with asyncio.timeout(10):
        await hook.arrived.wait()
    await delivery(program, await made(program, webhook={"url": url}), "delivered")


async def test_who_does_not_answer_holds_up_nobody_else(
    program: httpx.AsyncClient, hook: Hook
) -> None:
    connected = asyncio.Semaphore(0)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        connected.release()
        await reader.read()

    async with listening(silent) as port, asyncio.timeout(8):  # less than a try takes
        for _ in range(webhooks.AT_ONCE + 1):
            await made(program, webhook={"url": f"http://127.0.0.1:{port}/"})
        for _ in range(webhooks.MOST_OF_USER):
            await connected.acquire()
        async with browser() as other:
            key = await sync_to_async(keys.create)(await make_user())
            other.headers["Authorization"] = f"Bearer {key}"
            job = await made(other, webhook={"url": f"http://127.0.0.1:{hook.port}/"})
            await delivery(other, job, "delivered")
