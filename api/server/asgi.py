"""The ASGI application: static files, Django, and the application context's life."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from functools import partial

import django

from api import environment

environment.use_settings()
django.setup(set_prefix=False)

# Django's apps must be ready before any of our rooms is imported.
import structlog  # noqa: E402
from asgiref.sync import sync_to_async  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.staticfiles.finders import get_finders  # noqa: E402
from django.core.signals import request_finished  # noqa: E402
from django.db import DatabaseError, close_old_connections, connections  # noqa: E402
from django.urls import get_resolver  # noqa: E402
from servestatic import ServeStaticASGI  # type: ignore[import-untyped]  # noqa: E402

from api import context  # noqa: E402
from api.accounts import lockout  # noqa: E402
from api.accounts.revocation import enforce_repeatedly  # noqa: E402
from api.answers import store  # noqa: E402
from api.batches import store as batches  # noqa: E402
from api.chat.purge import purge_repeatedly  # noqa: E402
from api.context import AppContext  # noqa: E402
from api.files import cleaning as files  # noqa: E402
from api.idempotency.store import delete_expired_repeatedly  # noqa: E402
from api.jobs import store as jobs  # noqa: E402
from api.metrics.instruments import Instruments  # noqa: E402
from api.operate.audit import store as audit  # noqa: E402
from api.operate.history import log as history  # noqa: E402
from api.responses import store as responses  # noqa: E402
from api.server import background, logs  # noqa: E402
from api.server.edge import Edge  # noqa: E402
from api.server.handler import Handler, Receive, Scope, Send  # noqa: E402
from api.server.memory import trim_repeatedly  # noqa: E402
from api.server.observation import Observer  # noqa: E402
from api.server.response_headers import client_of  # noqa: E402
from api.server.socket_handover import END_STREAMS  # noqa: E402
from api.tunnel.endpoint import Tunnels  # noqa: E402
from broker.client import Client  # noqa: E402
from broker.tunnel_end import TunnelEnd  # noqa: E402

log = structlog.get_logger("canopy.api")

TRACES_SECONDS = 2.0  # for the last spans to be sent
CHECK_CONNECTIONS_EVERY = 10.0  # seconds

# Each response would look for broken connections in the event loop's thread, which has none;
# check_connections looks in the thread that has them.
request_finished.disconnect(close_old_connections)


class Application:
    """Dispatches by scope: lifespan here, files to servestatic, tunnels, the rest to Django."""

    def __init__(self, make_client: Callable[[], Client]) -> None:
        self.instruments = Instruments(settings.ENV.process)
        self.tracer = environment.tracer(settings.ENV.process)
        self.handler = Handler(Observer(self.instruments.http, self.tracer))
        self._make_client = make_client
        self._http = Edge(with_static_files(self.handler), settings.ENV)
        self._tunnels: Tunnels | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entrance."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "websocket":  # the server takes none unless tunnels are on
            assert self._tunnels is not None  # noqa: S101 - as it takes nothing before `running`
            scope["client"] = client_of(scope, dict(scope["headers"]), settings.ENV.proxies)
            await self._tunnels(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        # again: uvicorn may have spawned this process
        logs.configure(*environment.log_settings())
        scope["state"][END_STREAMS] = self._end_streams
        async with self.running():
            read_urls()
            # Code and settings never become garbage: scanning them would delay the streams.
            gc.collect()
            gc.freeze()
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await asyncio.to_thread(self.tracer.close, TRACES_SECONDS)
        await send({"type": "lifespan.shutdown.complete"})

    def _end_streams(self) -> None:
        self.handler.end_streams()
        if self._tunnels is not None:
            self._tunnels.end()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        """Runs the context and its background tasks; hands unfinished answers over at the end."""
        client = self._make_client()
        self.instruments.refused_frames.of(client)
        client.metrics.answer_with(partial(self.instruments.of_process, client.process))
        await client.start()
        app = context.build(client, settings.ENV, self.instruments, self.tracer)
        context.set_current(app)
        self._tunnels = Tunnels(TunnelEnd(settings.ENV.amqp_url), app.guesses)
        await asyncio.to_thread(app.contents.prepare)
        tasks = start_background_tasks(app, self.handler)
        try:
            yield client
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await app.batches.stop()
            await app.jobs.stop()
            await app.plans.flush()
            await app.answer_streams.stop()
            await app.history.stop()
            await app.usage.stop()
            await app.titles.stop()
            await app.replays.stop()
            await app.node_actions.stop()
            await app.autoscaler.stop()
            await app.drills.stop()
            await app.model_trees.close()
            await app.backlog.stop()
            await app.writers.hand_over()
            await app.response_inserts.stop()
            await client.stop()
            # After the client: nodes drop this process's jobs when its reply queue disappears, and
            # only then may the answers' next owner submit them.
            await release_answers()
            context.set_current(None)
            await sync_to_async(connections.close_all)()


def start_background_tasks(app: AppContext, handler: Handler) -> list[asyncio.Task[None]]:
    """All work beside the requests."""
    revocation = partial(enforce_repeatedly, app.client, app.active, handler)
    clean_files = partial(files.clean_repeatedly, app.contents, settings.ENV.files.job_days)
    tasks = [
        background.start("database connections", check_connections),
        background.start("freed memory", trim_repeatedly),
        background.start("event loop's lag", app.instruments.measure_lag),
        background.start("deadlines", app.active.enforce_deadlines),
        background.start("disabled users", revocation),
        background.start("wrong passwords", lockout.forget_repeatedly),
        background.start("takeover", app.takeover.run),
        background.start("idempotent requests", delete_expired_repeatedly),
        background.start("stored responses", responses.delete_expired_repeatedly),
        background.start("deleted conversations", purge_repeatedly),
        background.start("batches", app.batches.run),
        background.start("stored jobs", app.jobs.run),
        background.start("webhooks", app.webhooks.run),
        background.start("expired files", clean_files),
        background.start("paused models", app.intake.keep_fresh),
        background.start("models' settings", app.cards.keep_fresh),
        background.start("use", app.usage.flush_repeatedly),
        background.start("plans", app.plans.keep_fresh),
        background.start("used tokens", app.plans.flush_repeatedly),
        background.start("streams of answers", app.answer_streams.keep_repeatedly),
        background.start("audit log", audit.purge_repeatedly),
        background.start("recorder", app.recorder.run),
        background.start("tree", app.tree.sample_repeatedly),
        background.start("history", app.history.write_repeatedly),
        background.start("use of slots", partial(history.watch_slots, app.client, app.history)),
        background.start("kept history", partial(history.keep_repeatedly, app.client)),
    ]
    if app.notifier is not None:
        tasks.append(background.start("notifications", app.notifier.run))
    return tasks


async def release_answers() -> None:
    """Lets another process continue this one's unfinished answers at once."""
    try:
        await store.release_all(context.STORED)
        await batches.release_all()
        await jobs.release_all()
    except DatabaseError as error:  # they are taken over when this process is seen to be gone
        log.warning("unfinished answers could not be released", reason=str(error))


def read_urls() -> None:
    """Imports what urls.py names: otherwise the first request does, and others wait for it."""
    _ = get_resolver().url_patterns


async def check_connections() -> None:
    """Drops broken database connections, since no request looks for them. Never ends."""
    while True:
        await asyncio.sleep(CHECK_CONNECTIONS_EVERY)
        await sync_to_async(close_old_connections)()


def with_static_files(application: Handler) -> ServeStaticASGI:
    """Serves the apps' files and the built frontend below STATIC_URL, the rest by `application`.

    Outside Django: a file needs none of its middleware, and no other request shall pay for files.
    """
    server = ServeStaticASGI(
        application,
        max_age=3600,
        allow_all_origins=False,
        immutable_file_test=r"/assets/.+-[\w-]{8}\.\w+$",  # Vite's names contain a content hash
    )
    for finder in get_finders():
        for storage in getattr(finder, "storages", {}).values():
            server.add_files(storage.location, settings.STATIC_URL)
    if settings.FRONTEND_DIST.is_dir():
        server.add_files(settings.FRONTEND_DIST, settings.STATIC_URL)
    return server


def _make_client() -> Client:
    return Client(settings.ENV.amqp_url, queue_type=settings.ENV.queue_type)


application = Application(_make_client)
