"""The API under test: real ASGI application, real database, scripted broker client."""

import asyncio
import itertools
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import django
import httpx
import msgspec
import pytest
import pytest_asyncio
import uvicorn

from broker.announcements import Announcements
from broker.broker_reports import BrokerReports
from broker.conversation_events import ConversationEvents
from broker.drill_watch import DrillWatch
from broker.edge_watch import EdgeWatch
from broker.errors import NoTree, Unavailable
from broker.host_watch import HostWatch
from broker.job_messages import Answer, AnyQuestion
from broker.job_watch import JobWatch
from broker.memory import MemoryBroker, MemorySession
from broker.metrics_exchange import MetricsExchange
from broker.model_supply import ModelSupply, supply_of
from broker.node_state import NodeState
from broker.node_states import NodeStates
from broker.operator_messages import BrokerOverview
from broker.stream import Stream
from broker.wire import AnyControl, AnyFrame, Delta, Finished, Job, RemoveGone, Start, Waiting
from topology import names

_home = tempfile.TemporaryDirectory(prefix="canopy-unit-")
_environment = {
    "CANOPY_HOME": _home.name,
    "CANOPY_MODELS": '["tiny", "big"]',
    "DJANGO_SETTINGS_MODULE": "api.settings",
    # tests/clients/test_postgresql.py runs some of these tests on another database
    "DATABASE_URL": os.environ.get("TEST_DATABASE_URL", ""),
}
_unset = dict.fromkeys(("CANOPY_SECRET_FILE", "CANOPY_MANAGEMENT_URL", "CANOPY_HOSTS"), "")
with mock.patch.dict(os.environ, {**_environment, **_unset, "CANOPY_PORT": ""}):
    django.setup()

from django.conf import settings  # noqa: E402

if not _environment.get("DATABASE_URL"):  # nothing here must survive a power cut
    settings.DATABASES["default"]["OPTIONS"]["init_command"] += "; PRAGMA synchronous=OFF"
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

from api.accounts import keys  # noqa: E402
from api.accounts.models import User  # noqa: E402
from api.context import app  # noqa: E402
from api.errors import NotRunning  # noqa: E402
from api.operate.recorder.recorder import NO_ADDRESS  # noqa: E402

_numbers = itertools.count(1)


def echo(job: Job) -> list[AnyFrame]:
    """What the echo engine says: the last user message's words, from where the reader is."""
    text = job.prompt if job.messages is None else job.messages[-1].content
    words = (text or "").split()
    left = " ".join(words)[len(job.delivered) :]
    pieces: list[AnyFrame] = [
        Delta(request_id=job.request_id, seq=number, text=piece)
        for number, piece in enumerate(re.findall(r"\s?\S+", left), 1)
    ]
    end = Finished(
        request_id=job.request_id,
        seq=len(pieces) + 1,
        reason="stop",
        prompt_tokens=3,
        completion_tokens=len(words),
    )
    return [Start(request_id=job.request_id, node="n1"), *pieces, end]


def beginning(text: str) -> Callable[[Job], list[AnyFrame]]:
    """A script that says this and is silent then."""
    return lambda job: [Delta(request_id=job.request_id, text=text)]


def node_state(name: str, **changes: Any) -> NodeState:
    """A node that serves `tiny`."""
    fields: dict[str, Any] = {
        "name": name,
        "parent": "root",
        "children": (),
        "model": "tiny",
        "engine": "echo",
        "device": "cpu",
        "policy": "hold-high",
        "status": "idle",
        "slots": 2,
        "running": 0,
        "held": 0,
        "received": 0,
        "finished": 0,
        "tokens": 0,
        "host": "here",
        "pid": 1,
        "started": time.time() - 10,
        "sent": time.time(),
    }
    return NodeState(**{**fields, **changes})


class FakeJobWatch(JobWatch):
    """Questions are answered by `script`; reports come from the test."""

    def __init__(self) -> None:
        self.node_states = NodeStates()
        super().__init__("api-test", self.node_states)
        self.asked: list[AnyQuestion] = []
        self.script: Callable[[Any], list[Answer]] = lambda question: [
            Answer(number="", node="n1", known=True, done=True)
        ]

    async def ask(self, question: Any, *, any_known: bool = False) -> list[Answer]:
        self.asked.append(question)
        return self.script(question)


class FakeClient:
    """broker.client.Client without a broker: `script` makes the frames of a job."""

    def __init__(self) -> None:
        self.connected = True
        self.refused_frames = 0
        self.queue_type = "classic"
        self.trees = {"tiny", "big"}
        self.states = {"n1": node_state("n1")}
        self.script: Callable[[Job], Iterable[AnyFrame]] = echo
        self.jobs: list[Job] = []
        self.streams: dict[str, Stream] = {}
        self.pushed: defaultdict[str, list[AnyFrame]] = defaultdict(
            list
        )  # frames of runs, by request
        self.cancelled: list[
            tuple[str, int]
        ] = []  # by readers that left: requests, and their copies numbered below
        self.cancels: list[tuple[str, str]] = []  # by request
        self.controls: list[tuple[str, AnyControl]] = []
        self.queue_depths: dict[str, int] = {}
        self.ghosts: set[str] = set()  # nodes that tell a state and have no queue
        self.conversations = ConversationEvents("api-test")
        self.hosts = HostWatch("api-test")
        self.reports = BrokerReports("api-test")
        self.edges = EdgeWatch("api-test", self._notify)
        self.reports.listen(self.edges.on_overview)
        self.reports.publish(BrokerOverview(process="api-0", problem=NO_ADDRESS))
        self.memory = MemoryBroker()  # for sessions of its own
        self.metrics = MetricsExchange("api-test")
        self.process = "api-test"
        self.announcements = Announcements("api-test")
        self.job_watch = FakeJobWatch()
        self.drills = DrillWatch("api-test", self.streams)
        self.submitted = asyncio.Event()
        self._changes = asyncio.Event()

    async def start(self) -> None:
        """Nothing to connect to."""

    async def stop(self) -> None:
        """Open streams end."""
        for stream in list(self.streams.values()):
            await stream.aclose()

    async def open_session(self) -> MemorySession:
        return self.memory.session()

    async def responds(self) -> bool:
        """The scripted broker answers while it is connected."""
        return self.connected

    async def submit(self, job: Job) -> Stream:
        if not self.connected:
            raise Unavailable("the broker is not connected")
        if job.model not in self.trees:
            raise NoTree(job.model)
        self.jobs.append(job)
        stream = self.streams[job.request_id] = Stream(job, self._forget)
        self.pushed[job.request_id] = []
        for frame in self.script(job):
            self.push(frame)
        self.submitted.set()
        return stream

    def push(self, frame: AnyFrame) -> None:
        """A frame arrives; it gets the number that comes next."""
        stream = self.streams.get(frame.request_id)
        if stream is not None:
            number = len(self.pushed[frame.request_id])
            if not isinstance(frame, Waiting):
                self.pushed[frame.request_id].append(frame)
            assert stream.push(msgspec.structs.replace(frame, seq=number))

    def clock_differences(self) -> dict[str, float]:
        return dict.fromkeys(self.states, 0.0)

    def lost_nodes(self) -> frozenset[str]:
        return frozenset()

    def cancel(self, request_id: str, user: str) -> None:
        self.cancels.append((request_id, user))

    def supply(self, model: str) -> ModelSupply:
        return supply_of(model, self.states.values())

    def nodes(self) -> dict[str, NodeState]:
        return dict(self.states)

    async def changed(self) -> None:
        await self._changes.wait()

    def change(self, state: NodeState) -> None:
        """A node tells its state."""
        self.states[state.name] = state
        self._notify()

    def _notify(self) -> None:
        changes, self._changes = self._changes, asyncio.Event()
        changes.set()

    async def control(self, node: str, message: AnyControl) -> bool:
        self.controls.append((node, message))
        if isinstance(message, RemoveGone):
            self._remove_gone(message.nodes)
        return node in self.states

    def _remove_gone(self, nodes: Iterable[str]) -> None:
        reports = self.reports.latest
        assert reports is not None
        gone = [names.node(name) for name in nodes]
        self.reports.publish(
            msgspec.structs.replace(
                reports,
                queues=tuple(queue for queue in reports.queues if queue.name not in gone),
                bindings=tuple(each for each in reports.bindings if each.destination not in gone),
            )
        )

    async def depths(self, queues: Iterable[str]) -> dict[str, int]:
        missing = {names.node(name) for name in self.ghosts}
        return {queue: self.queue_depths.get(queue, 0) for queue in queues if queue not in missing}

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.request_id, None) is not None and not stream.ended:
            self.cancelled.append((stream.request_id, stream.attempt + 1))


@pytest.fixture(scope="session")
def database() -> Iterator[None]:
    """A migrated database: a SQLite file, unless TEST_DATABASE_URL names another."""
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0, interactive=False)
    connections.close_all()
    yield
    connections.close_all()


@pytest_asyncio.fixture
async def fake(database: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeClient]:
    """The running application's broker client."""
    from api.server.asgi import application

    client = FakeClient()
    monkeypatch.setattr(application, "_make_client", lambda: client)
    async with application.running():
        yield client
    with pytest.raises(NotRunning):
        app()
    await forget_answers()
    await forget_models()
    await forget_wrong_passwords()


async def forget_models() -> None:
    """What one test sets of models is not for the next one."""
    from api.operate.models.models import AutoscaledNode, AutoscaleRule, ModelSettings

    for kind in (ModelSettings, AutoscaleRule, AutoscaledNode):
        await kind.objects.all().adelete()


async def forget_wrong_passwords() -> None:
    """Nor does one test lock the logins of the next one."""
    from axes.models import AccessAttempt, AccessLog

    for kind in (AccessAttempt, AccessLog):
        await kind.objects.all().adelete()


async def forget_answers() -> None:
    """What one test leaves unfinished is not for the next one to take over."""
    from api.chat.models import Message
    from api.idempotency.models import KeptRequest
    from api.responses.models import StoredResponse

    await Message.objects.all().adelete()
    await KeptRequest.objects.all().adelete()
    await StoredResponse.objects.all().adelete()


@pytest_asyncio.fixture
async def web(fake: FakeClient) -> AsyncIterator[httpx.AsyncClient]:
    """A browser without cookies, in front of the application."""
    async with browser() as client:
        yield client


def browser() -> httpx.AsyncClient:
    """A new browser."""
    from api.server.asgi import application

    transport = httpx.ASGITransport(app=application)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@pytest_asyncio.fixture
async def user(fake: FakeClient) -> User:
    """A user without rights."""
    return await make_user()


async def make_user(**fields: Any) -> User:
    """A user with the password `secret password`."""
    user = User(username=f"user{next(_numbers)}", **fields)
    user.set_password("secret password")
    await user.asave()
    return user


async def log_in(client: httpx.AsyncClient, user: User) -> None:
    """Logs in as a page would, and sends the CSRF token from then on."""
    await client.get("/api/me")
    await refresh_csrf(client)
    answer = await client.post(
        "/api/login", json={"username": user.username, "password": "secret password"}
    )
    assert answer.status_code == 200, answer.text
    await refresh_csrf(client)


async def refresh_csrf(client: httpx.AsyncClient) -> None:
    """Copies the CSRF cookie into the header, as the page does."""
    client.headers["X-CSRFToken"] = client.cookies["csrftoken"]


@pytest_asyncio.fixture
async def member(user: User) -> AsyncIterator[httpx.AsyncClient]:
    """A logged-in browser."""
    async with browser() as client:
        await log_in(client, user)
        yield client


@pytest_asyncio.fixture
async def staff(fake: FakeClient) -> AsyncIterator[httpx.AsyncClient]:
    """A browser logged in as staff."""
    async with browser() as client:
        await log_in(client, await make_user(is_staff=True))
        yield client


@pytest_asyncio.fixture
async def program(user: User) -> AsyncIterator[httpx.AsyncClient]:
    """A program with an API key."""
    from asgiref.sync import sync_to_async

    async with browser() as client:
        client.headers["Authorization"] = f"Bearer {await sync_to_async(keys.create)(user)}"
        yield client


@pytest_asyncio.fixture
async def live(fake: FakeClient) -> AsyncIterator[str]:
    """The application behind a real server on a loopback port; its address."""
    from api.server.asgi import application
    from api.server.limits import Limits
    from api.server.serve import configuration

    config = configuration(application, Limits())
    config.host, config.port = "127.0.0.1", 0
    config.lifespan = "off"
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def until(condition: Callable[[], Any], seconds: float = 3.0) -> None:
    """Returns when the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
