"""The life of `canopy up`: from a request to a running instance, and back to nothing."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from functools import partial
from typing import Any

from broker import management
from broker.amqp import AmqpSession
from broker.errors import ManagementError
from broker.management import ManagementApi
from broker.session import Session
from cli import (
    addresses,
    control_server,
    detached,
    environment,
    instance,
    lost_queues,
    node_directory,
    plan,
    ports,
    processes,
    registry,
    rolling,
    state,
    token_watch,
)
from cli.console import Console, is_kept, say
from cli.control import Message
from cli.errors import MachineError, SettingError, UnreachableError, first_error
from cli.home import PREPARE_LOCK, PRIVATE_UMASK, Home
from cli.host import agent
from cli.host.allowed import Allowed
from cli.host.nodes import HostNodes
from cli.plan import Plan, Request
from cli.prepare import frontend, steps
from cli.prepare.model import Model
from cli.rabbitmq import Broker, PrivateBroker, TlsListener
from cli.supervisor import Supervisor

NEEDED_BYTES = 500_000_000  # with less, the broker soon blocks publishers and logs are lost
PROGRESS_SECONDS = 10.0  # between two lines about a start that takes long
_LAST_LINES_SECONDS = 1.0  # for a slow terminal to take the last lines
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check(request: Request, home: Home) -> None:
    """Refuses what could not end well, before anything is prepared or started. Raises CliError.

    Call with the lock held. It first ends what a killed launcher left, which may hold the port.
    """
    state.check(home)
    for name in processes.end_leftovers(home):
        say(f"ended {name}, left over from a launcher that was killed")
    ports.check_free(request.host, request.port)
    if request.listen:
        ports.check_address(request.listen)
    log_format = environment.read().log_format
    if log_format not in ("text", "json"):
        raise SettingError(f"CANOPY_LOG_FORMAT must be text or json, not {log_format[:50]!r}.")
    node_directory.read(os.environ)
    free = shutil.disk_usage(home.path).free
    if free < NEEDED_BYTES:
        raise MachineError(
            f"The disk of {home.path} has only {free / 1e6:.0f} MB free; "
            f"{NEEDED_BYTES / 1e6:.0f} MB are needed."
        )


def prepare(models: list[Model], home: Home) -> None:
    """Builds the pages and prepares the models, at the same time. Raises CliError."""
    pages = frontend.step()
    with contextlib.ExitStack() as locks:
        if pages.needed():  # a repository that another user prepared may be read-only
            locks.enter_context(steps.exclusive(PREPARE_LOCK))
        if models:
            locks.enter_context(steps.exclusive(home.models_lock))
        steps.run_together([pages, *(model.step(home) for model in models)], home.logs)


def run(request: Request, home: Home) -> None:
    """Runs an instance until a signal or a failure ends it; call with the lock held.

    Raises CliError.
    """
    os.umask(PRIVATE_UMASK)  # for every process started from here on
    log = home.launcher_log if detached.is_detached() else None
    console = Console(log, as_json=environment.read().log_format == "json")
    try:
        # The port stays bound as long as the instance runs: API processes come and go on it.
        with ports.bind(request.host, request.port) as listener:
            asyncio.run(_live(request, home, listener, console))
    finally:
        # A full disk may keep the files; they are ignored once the lock is free.
        with contextlib.suppress(OSError):
            home.instance_file.unlink(missing_ok=True)
            home.processes_file.unlink(missing_ok=True)
        console.close(_LAST_LINES_SECONDS)


async def _problems(broker: Broker) -> AsyncGenerator[Message]:
    """Answers `status`, which has no time to import what reads the tree."""
    amqp_url, management_url = broker.amqp["admin"], broker.management.get("admin")
    yield {"problems": await registry.problems(amqp_url, management_url)}


def _tls_listener(request: Request, home: Home) -> TlsListener | None:
    """Where other machines are to reach the broker. Raises CliError, OSError."""
    if not request.listen:
        return None
    from cli import certificate  # here, as few instances need a library for certificates

    if request.tls_files:
        return TlsListener(request.listen, certificate.load(*request.tls_files))
    return TlsListener(request.listen, certificate.load_or_create(home.broker))


async def _live(request: Request, home: Home, listener: socket.socket, console: Console) -> None:
    await Launcher(request, home, listener, console).live()


class Launcher:
    """Starts an instance, serves other commands, and stops it. Make it in a running event loop."""

    def __init__(
        self, request: Request, home: Home, listener: socket.socket, console: Console
    ) -> None:
        self._request = request
        self._home = home
        self._listener = listener
        self._console = console
        self._private: PrivateBroker | None = None
        if not environment.read().amqp_url:
            directory = node_directory.read(os.environ)
            self._private = PrivateBroker(home, _tls_listener(request, home), directory)
        self._supervisor = Supervisor(home, self._private, console.say)

    async def live(self) -> None:
        """Returns after a signal, when everything has stopped. Raises what ended it instead."""
        stopping = self._on_signals()
        life = asyncio.create_task(self._serve())
        try:
            ends: list[asyncio.Future[Any]] = [life, stopping, self._supervisor.failure]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                self._console.say("stopping")
                detached.report_failure("Canopy was stopped before it was ready.")
            elif self._supervisor.failure.done():
                raise self._supervisor.failure.result()
            else:
                life.result()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            started = time.monotonic()
            life.cancel()
            await asyncio.wait([life])
            self._listener.close()  # refuses new connections, which no API would accept
            await self._supervisor.stop()
            if stopping.done():
                self._console.say(f"stopped in {time.monotonic() - started:.1f} s")

    def _on_signals(self) -> "asyncio.Future[None]":
        """A future that the first signal completes; a second signal kills everything at once."""
        loop = asyncio.get_running_loop()
        stopping: asyncio.Future[None] = loop.create_future()

        def stop() -> None:
            if stopping.done():
                self._supervisor.roster.kill()
            else:
                stopping.set_result(None)

        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, stop)
        return stopping

    async def _serve(self) -> None:
        started = time.time()
        broker = self._broker()
        layout = plan.make(self._request, self._home, broker, self._listener.fileno())
        if self._private is None:
            await self._end_expired_tokens(broker)
        names = ", ".join(spec.name for spec in (*layout.roots, *layout.nodes))
        self._console.say(f"starting the broker, the database, {names}")
        async with self._progress(), asyncio.TaskGroup() as together:
            together.create_task(self._start_broker(broker))
            together.create_task(self._supervisor.start_nodes(layout))
            token = together.create_task(self._start_api(layout))

        def publish() -> None:
            instance.write(self._home, self._record(broker, started))

        def answer(request: Message) -> AsyncGenerator[Message]:
            if request.get("command") == "problems":
                return _problems(broker)
            return rolling.answer(request, self._supervisor, layout, self._request.url)

        self._supervisor.roster.publish_with(publish)
        async with lost_queues.removed(self._private), control_server.serving(self._home, answer):
            seconds = time.time() - started
            self._console.say(
                f"started in {seconds:.0f} s; Ctrl-C or ./canopy down stops everything"
            )
            self._announce(token.result())
            async with asyncio.TaskGroup() as lasting:
                lasting.create_task(self._run_agent(broker))
                if "admin" in broker.management:
                    watching = token_watch.watch(
                        self._home, broker.management["admin"], self._console.say
                    )
                    lasting.create_task(watching)

    @contextlib.asynccontextmanager
    async def _progress(self) -> AsyncGenerator[None]:
        """Says now and then what the block waits for."""

        async def report() -> None:
            started = time.monotonic()
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                names = ", ".join(self._supervisor.roster.awaited) or "the broker's management API"
                seconds = time.monotonic() - started
                self._console.say(f"after {seconds:.0f} s still waiting for {names}")

        reporting = asyncio.create_task(report(), name="progress of the start")
        try:
            yield
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    async def _run_agent(self, broker: Broker) -> None:
        """Lets operators start and stop nodes on this machine. Never ends."""
        request = self._request
        name = agent.default_name()

        async def connect() -> Session:
            url, queue_type = broker.amqp["node"], environment.read().queue_type
            return await AmqpSession.open(url, f"agent {name}", queue_type=queue_type)

        host = agent.HostAgent(name, request.engine, connect, self._console.say)
        nodes = HostNodes(
            self._supervisor,
            self._home,
            partial(plan.added_node, request, self._home, broker),
            Allowed(
                models={**request.model_arguments, **request.allowed_models},
                devices=(),
                max_nodes=request.max_nodes,
            ),
            needs_files=request.engine == "transformers",
            folders=request.models,
            drills=environment.read().drills == "1",
            on_change=host.touch,
        )
        try:
            await host.run(nodes, patient=True)
        finally:
            await nodes.close()

    def _broker(self) -> Broker:
        if self._private is None:
            return Broker.elsewhere(*addresses.of_environment())
        self._private.prepare()
        return self._private.address()

    async def _start_broker(self, broker: Broker) -> None:
        """Our own broker is also cleared of what a former tree, of another shape or model, left."""
        await self._supervisor.start_broker()
        if self._private is None:
            return
        try:
            await management.prune_tree(broker.management["admin"], plan.edges(self._request))
            await self._end_expired_tokens(broker)
            admin = ManagementApi(broker.management["admin"])
            await token_watch.reconcile(self._home, admin, "/", self._console.say)
        except ManagementError as error:
            raise UnreachableError(str(error)) from error

    async def _end_expired_tokens(self, broker: Broker) -> None:
        management_url = broker.management.get("admin", "")
        await token_watch.end_expired(self._home, management_url, self._console.say)

    async def _start_api(self, layout: Plan) -> str:
        """Returns a fresh login token once the API serves."""
        for line in await self._supervisor.run_once(layout.migrate):
            self._console.say(line)  # the names of migrations, for instance
        state.record(self._home)
        async with asyncio.TaskGroup() as together:
            token = together.create_task(self._supervisor.run_once(layout.login_token))
            for spec in layout.apis:
                together.create_task(self._supervisor.start_api(spec))
        return token.result()[-1].strip()

    def _announce(self, token: str) -> None:
        """The last line of `up`. The login link, a secret, must never reach a log."""
        ready = f"Canopy is ready: {self._request.address}"
        link = f"{ready}/login?token={token}"
        if detached.is_detached():
            self._console.result(ready)
            detached.report_ready(link)
        elif is_kept():
            self._console.result(f"{ready} (./canopy login prints a link that logs you in)")
        else:
            self._console.result(link)

    def _tls_record(self) -> dict[str, Any] | None:
        """How other machines reach the broker now: addresses come and go."""
        listener = self._private.listener() if self._private else None
        return listener and listener._asdict()

    def _record(self, broker: Broker, started: float) -> instance.Record:
        request = self._request
        return {
            "pid": os.getpid(),
            "commands": ["restart", "problems"],  # that it takes through `control`
            "started": started,
            "port": request.port,
            "url": request.url,
            "address": request.address,
            "tls": self._tls_record(),
            "tunnel": request.tunnel,
            "amqp": broker.amqp,
            "management": broker.management.get("admin", ""),
            "models": list(request.models),
            "roots": request.roots,
            "asked": dict(request.model_arguments),
            "upstream": request.upstream,
            "upstream_model": request.upstream_model,
            "engine": request.engine,
            "task": request.task,
            "policy": request.policy,
            "processes": [asdict(record) for record in self._supervisor.roster.records()],
        }
