"""The ASGI application: static files, Django, and the life of the broker client around them."""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable
from functools import partial

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
django.setup(set_prefix=False)

# Django's apps must be ready before anything of ours is imported.
import structlog  # noqa: E402
from asgiref.sync import sync_to_async  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.staticfiles.finders import get_finders  # noqa: E402
from django.db import DatabaseError, close_old_connections, connections  # noqa: E402
from servestatic import ServeStaticASGI  # type: ignore[import-untyped]  # noqa: E402

from api import context  # noqa: E402
from api.answers import store  # noqa: E402
from api.idempotency import store as kept  # noqa: E402
from api.server import background, logs  # noqa: E402
from api.server.edge import Edge  # noqa: E402
from api.server.handler import Handler, Receive, Scope, Send  # noqa: E402
from api.server.socket_handover import END_STREAMS  # noqa: E402
from api.tree.orphans import look_after_orphans  # noqa: E402
from broker.client import Client  # noqa: E402

log = structlog.get_logger("canopy.api")

CHECK_CONNECTIONS_EVERY = 10.0  # seconds


class Application:
    """Dispatches by scope: the server's lifespan here, files to the static server, the rest to Django."""

    def __init__(self, make_client: Callable[[], Client]) -> None:
        self.handler = Handler()
        self._make_client = make_client
        self._http = Edge(with_static_files(self.handler), settings.ENV)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entrance."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        logs.configure()  # also in the processes that uvicorn spawned
        scope["state"][END_STREAMS] = self.handler.end_streams
        async with self.running():
            # What the program itself is made of never becomes garbage: looking through all of it held the streams up.
            gc.collect()
            gc.freeze()
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        """Runs the broker client and what keeps the stored answers; at the end nothing of an answer is lost."""
        client = self._make_client()
        await client.start()
        app = context.build(client, settings.ENV)
        context.set_current(app)
        keepers = [
            background.start("database keeper", check_connections),
            background.start("deadline keeper", app.followed.end_late),
            background.start("takeover", app.takeover.run),
            background.start("kept requests", kept.keep_expiring),
            background.start("orphans", partial(look_after_orphans, client)),
        ]
        try:
            yield client
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await app.backlog.stop()
            await app.writings.hand_over()
            await client.stop()
            # Only now: the nodes drop this process's jobs with its reply queue, before the next owner submits them.
            await give_up_answers()
            context.set_current(None)
            await sync_to_async(connections.close_all)()


async def give_up_answers() -> None:
    """Lets another process, or this one's successor, go on with what is unfinished at once."""
    try:
        await store.release_all(context.STORED)
    except DatabaseError as error:  # then the successor sees that this process is gone
        log.warning("unfinished answers could not be released", reason=str(error))


async def check_connections() -> None:
    """Now and then drops a database connection that broke: requests keep theirs open and never look."""
    while True:
        await asyncio.sleep(CHECK_CONNECTIONS_EVERY)
        await sync_to_async(close_old_connections)()


def with_static_files(application: Handler) -> ServeStaticASGI:
    """Serves the apps' files and the built frontend below STATIC_URL; everything else goes to `application`.

    Outside Django, because a static file needs none of its middleware, and no other request shall pay for files.
    """
    server = ServeStaticASGI(
        application,
        max_age=3600,
        allow_all_origins=False,
        immutable_file_test=r"/assets/.+-[\w-]{8}\.\w+$",  # Vite puts a hash of the content into these names
    )
    for finder in get_finders():
        for storage in getattr(finder, "storages", {}).values():
            server.add_files(storage.location, settings.STATIC_URL)
    if settings.FRONTEND_DIST.is_dir():
        server.add_files(settings.FRONTEND_DIST, settings.STATIC_URL)
    return server


application = Application(lambda: Client(settings.ENV.amqp_url, queue_type=settings.ENV.queue_type))
