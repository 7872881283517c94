"""Notifications of long answers: who may be sent to, and that only the browser can read them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import http_ece
import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.utils import timezone

from api.accounts.models import User
from api.chat.models import Conversation, Message, Role, Status
from api.context import app
from api.environment import BadEnvironment, read
from api.push import services, store
from api.push.message import Target, encrypted
from tests.listening import listening
from tests.unit.api_site import FakeClient, until

CONTACT = "mailto:admin@example.org"
SECRET = bytes(range(16))


class Browser:
    """The keys that a browser keeps, and what it tells the service."""

    def __init__(self, endpoint: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        point = self.key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        keys = {"p256dh": encoded(point), "auth": encoded(SECRET)}
        self.subscription: dict[str, Any] = {"endpoint": endpoint, "keys": keys}

    def read(self, body: bytes) -> dict[str, str]:
        """A message to this browser."""
        content: dict[str, str] = json.loads(
            http_ece.decrypt(body, private_key=self.key, auth_secret=SECRET, version="aes128gcm")
        )
        return content


class PushService:
    """Accepts messages on a loopback port, or answers 410."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[str] = []
        self.status = b"201 Created"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.lower().splitlines() if line.startswith("content-len"))
        self.bodies.append(await reader.readexactly(int(length.split(":")[1])))
        self.headers.append(head)
        writer.write(b"HTTP/1.1 " + self.status + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()


def encoded(content: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@pytest_asyncio.fixture
async def push(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[PushService, str]]:
    """A push service and its origin; the application that starts next may send to it."""
    service = PushService()
    async with listening(service.handle) as port:
        origin = f"http://127.0.0.1:{port}"
        env = replace(settings.ENV, push_contact=CONTACT, push_services=(origin,))
        monkeypatch.setattr(settings, "ENV", env)
        yield service, origin


async def ended_answer(user: User, seconds: float) -> Message:
    """An answer of the user that took so long."""
    conversation = await Conversation.objects.acreate(user=user, model="tiny", title="A title")
    answer = await Message.objects.acreate(
        conversation=conversation, role=Role.ASSISTANT, content="It is\ndone", status=Status.DONE
    )
    answer.created = timezone.now() - timedelta(seconds=seconds)
    return answer


async def test_only_the_browser_reads_of_a_long_answer(
    push: tuple[PushService, str], fake: FakeClient, user: User, member: httpx.AsyncClient
) -> None:
    service, origin = push
    laptop = Browser(f"{origin}/laptop")
    assert (await member.get("/api/push")).json()["key"]
    stored = await member.post("/api/push/subscriptions", json=laptop.subscription)
    assert stored.status_code == 204, stored.text

    notifier = app().notifier
    assert notifier is not None
    notifier.answer_ended(await ended_answer(user, seconds=1))
    answer = await ended_answer(user, seconds=60)
    notifier.answer_ended(answer)
    await until(lambda: service.bodies)
    assert laptop.read(service.bodies[0]) == {
        "title": "A title",
        "body": "It is done",
        "path": f"/c/{answer.conversation_id}",
    }
    assert len(service.bodies) == 1
    assert "authorization: vapid t=" in service.headers[0].lower()
    assert b"It is" not in service.bodies[0]


async def test_a_browser_that_is_gone_is_forgotten(
    push: tuple[PushService, str], fake: FakeClient, user: User, member: httpx.AsyncClient
) -> None:
    service, origin = push
    service.status = b"410 Gone"
    await member.post("/api/push/subscriptions", json=Browser(f"{origin}/old").subscription)
    notifier = app().notifier
    assert notifier is not None
    notifier.answer_ended(await ended_answer(user, seconds=60))
    async with asyncio.timeout(30):
        while await store.of_user(user.pk):  # noqa: ASYNC110 - rows send no events
            await asyncio.sleep(0.01)


async def test_what_is_no_browser_is_refused(
    push: tuple[PushService, str], user: User, member: httpx.AsyncClient
) -> None:
    _, origin = push
    good = Browser(f"{origin}/x").subscription
    elsewhere = {**good, "endpoint": "https://169.254.169.254/latest"}
    bad_keys = {**good, "keys": {"p256dh": "AAAA", "auth": encoded(SECRET)}}
    short_secret = {**good, "keys": {**good["keys"], "auth": "AAAA"}}
    for body in (elsewhere, bad_keys, short_secret, {"endpoint": origin}):
        answer = await member.post("/api/push/subscriptions", json=body)
        assert answer.status_code in (400, 422), answer.text
    assert not await store.of_user(user.pk)


async def test_the_oldest_browser_makes_room_and_one_can_leave(
    push: tuple[PushService, str], user: User, member: httpx.AsyncClient
) -> None:
    _, origin = push
    for number in range(store.BROWSERS + 1):
        body = Browser(f"{origin}/{number}").subscription
        await member.post("/api/push/subscriptions", json=body)
    endpoints = [row.endpoint for row in await store.of_user(user.pk)]
    assert len(endpoints) == store.BROWSERS
    assert f"{origin}/0" not in endpoints
    await member.post("/api/push/subscriptions/remove", json={"endpoint": endpoints[0]})
    assert len(await store.of_user(user.pk)) == store.BROWSERS - 1


async def test_without_a_contact_nothing_is_sent(member: httpx.AsyncClient) -> None:
    assert (await member.get("/api/push")).json() == {"key": None}
    body = Browser("https://fcm.googleapis.com/x").subscription
    assert (await member.post("/api/push/subscriptions", json=body)).status_code == 404


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("https://fcm.googleapis.com/fcm/send/abc", True),
        ("https://updates.push.services.mozilla.com/wpush/v2/abc", True),
        ("https://web.push.apple.com/abc", True),
        ("https://db5p.notify.windows.com/w/?token=abc", True),
        ("http://fcm.googleapis.com/x", False),
        ("https://fcm.googleapis.com:8443/x", False),
        ("https://fcm.googleapis.com@evil.example/x", False),
        ("https://fcm.googleapis.com.evil.example/x", False),
        ("https://evilnotify.windows.com.example/", False),
        ("https://localhost/x", False),
        ("https://[::1", False),
        ("", False),
    ],
)
def test_only_push_services_are_sent_to(endpoint: str, allowed: bool) -> None:
    assert services.is_allowed(endpoint) is allowed


@pytest.mark.parametrize("keys", [("AAAA", encoded(SECRET)), ("", ""), ("!", "!")])
def test_bad_keys_of_one_browser_are_an_error_of_that_browser(keys: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        encrypted(Target("https://push.example/x", *keys), b"content")


def test_the_settings_are_checked() -> None:
    assert read({"CANOPY_PUSH_CONTACT": CONTACT}).push_contact == CONTACT
    assert read({"CANOPY_PUSH_SERVICES": "https://a.example"}).push_services == (
        "https://a.example",
    )
    for wrong in ({"CANOPY_PUSH_CONTACT": "me"}, {"CANOPY_PUSH_SERVICES": "a.example/x"}):
        with pytest.raises(BadEnvironment):
            read(wrong)
