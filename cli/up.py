"""`canopy up`: from options to a running instance, and back to nothing."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from typing import IO, Any

from broker import management
from cli import control, credentials, instance, plan, ports, rolling, supervisor
from cli.console import Console, is_journal
from cli.errors import CliError, explain_os_error
from cli.home import PREPARE_LOCK, PRIVATE_UMASK, Home, module_command, module_environment
from cli.lock import LOCK_FD, Lock
from cli.plan import Plan, Request
from cli.prepare import frontend, steps
from cli.prepare.model import Model
from cli.rabbitmq import Broker, PrivateBroker
from cli.supervisor import Supervisor

NEEDED_BYTES = (
    500_000_000  # below this the broker would soon block publishers, and logs have nowhere to go
)
_READY_FD = "CANOPY_READY_FD"
_LAST_LINES_SECONDS = 1.0  # for a terminal that stands still to take what was said last
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(line: str) -> None:
    """One line of progress, beside the results on standard output; for before the launcher runs."""
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"  {line}", file=sys.stderr, flush=True)


def check(request: Request, home: Home) -> None:
    """Refuses, before anything is started or prepared, what could not end well. Raises CliError.

    Call with the lock held.
    """
    for name in instance.end_leftovers(home):  # they may hold the port
        say(f"ended {name}, left over from a launcher that was killed")
    ports.check_free(request.host, request.port)
    ports.check_address(request.listen)
    free = shutil.disk_usage(home.path).free
    if free < NEEDED_BYTES:
        raise CliError(
            f"The disk of {home.path} has only {free / 1e6:.0f} MB free; {NEEDED_BYTES / 1e6:.0f} MB are needed."
        )


def prepare(models: list[Model], home: Home) -> None:
    """Builds the pages and makes the models ready, at the same time; instant the second time. Raises CliError."""
    pages = frontend.step()
    with contextlib.ExitStack() as locks:
        if pages.needed():  # a program folder that another user prepared need not be writable
            locks.enter_context(steps.exclusive(PREPARE_LOCK))
        if models:
            locks.enter_context(steps.exclusive(home.models_lock))
        steps.run_together([pages, *(model.step(home) for model in models)], home.logs)


def run(request: Request, home: Home) -> None:
    """Runs an instance until a signal or a failure ends it. Call with the lock held. Raises CliError."""
    os.umask(PRIVATE_UMASK)  # for every process started from here on
    console = Console(home.launcher_log if _is_detached() else None)
    try:
        # The port is ours for as long as the instance runs: API processes come and go on the same socket.
        with ports.bind(request.host, request.port) as listener:
            asyncio.run(_live(request, home, listener, console))
    finally:
        # Also on a disk that cannot be written: what these say is believed only while the lock is held.
        with contextlib.suppress(OSError):
            home.instance_file.unlink(missing_ok=True)
            home.processes_file.unlink(missing_ok=True)
        console.close(_LAST_LINES_SECONDS)


def detach(home: Home, lock: Lock) -> None:
    """Starts the same command in the background, with the lock, and returns when it is ready.

    Raises CliError with its reason. Whoever ends this command before that ends the other one.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    process, pipe = _start_detached(home, lock)
    try:
        say(f"starting in the background (pid {process.pid}, log: {home.launcher_log})")
        with os.fdopen(pipe) as stream:
            outcome = _outcome(stream.read())
    except KeyboardInterrupt:
        process.terminate()
        raise
    if "ready" not in outcome:
        raise CliError(outcome.get("error") or f"Canopy did not start (log: {home.launcher_log})")
    print(outcome["ready"], flush=True)


def _outcome(text: str) -> dict[str, str]:
    """What the detached launcher said of its start; nothing if it was killed, even in the middle of that."""
    try:
        outcome: dict[str, str] = json.loads(text)
    except ValueError:
        return {}
    return outcome


def _start_detached(home: Home, lock: Lock) -> tuple["subprocess.Popen[bytes]", int]:
    """The launcher, and the open end of the pipe on which it says how its start went."""
    read_end, write_end = os.pipe()
    command = module_command("cli", *(word for word in sys.argv[1:] if word != "--detach"))
    given = {_READY_FD: str(write_end), LOCK_FD: str(lock.fd)}
    log = os.open(home.launcher_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            env={**module_environment(), **given},
            pass_fds=[write_end, lock.fd],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
        os.close(write_end)
    return process, read_end


def _interrupt(*_signal: object) -> None:
    raise KeyboardInterrupt


def _is_detached() -> bool:
    """Whether a command waits in the foreground for this launcher."""
    return _READY_FD in os.environ


def tell_starter(**what: str) -> None:
    """Tells the command that waits in the foreground how a detached start went; does nothing without one."""
    number = os.environ.pop(_READY_FD, None)
    if number is not None:
        with contextlib.suppress(OSError), os.fdopen(int(number), "w") as pipe:
            json.dump(what, pipe)


async def _live(request: Request, home: Home, listener: socket.socket, console: Console) -> None:
    external = os.environ.get("CANOPY_AMQP_URL")
    private = None if external else PrivateBroker(home, request.listen)
    children = Supervisor(home, private, console.say)
    stopping = _on_signals(children)
    life = asyncio.create_task(_serve(request, home, private, children, listener, console))
    try:
        awaited: list[asyncio.Future[Any]] = [life, stopping, children.failure]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            console.say("stopping")
            tell_starter(error="Canopy was stopped before it was ready.")
        elif children.failure.done():
            raise children.failure.result()
        else:
            life.result()
    except BaseExceptionGroup as group:
        raise supervisor.first_error(group) from None
    finally:
        started = time.monotonic()
        life.cancel()
        await asyncio.wait([life])
        listener.close()  # who asks now is refused, instead of waiting for an API that does not come
        await children.stop()
        if stopping.done():
            console.say(f"stopped in {time.monotonic() - started:.1f} s")


async def _serve(
    request: Request,
    home: Home,
    private: PrivateBroker | None,
    children: Supervisor,
    listener: socket.socket,
    console: Console,
) -> None:
    started = time.time()
    if private:
        private.prepare()
        broker = private.address()
    else:
        broker = Broker.elsewhere(
            os.environ["CANOPY_AMQP_URL"], os.environ.get("CANOPY_MANAGEMENT_URL", "")
        )
    layout = plan.make(request, home, broker, listener.fileno())
    console.say(f"starting the broker, the database, {_names(layout)}")
    async with asyncio.TaskGroup() as together:
        together.create_task(_start_broker(children, request, broker, private is not None))
        together.create_task(children.start_nodes(layout))
        token = together.create_task(_start_api(children, layout))
    children.roster.publish_with(lambda: _publish(request, home, broker, children, started))
    async with control.serving(
        home, lambda asked: rolling.answer(asked, children, layout, request.url)
    ):
        console.say(
            f"started in {time.time() - started:.0f} s; Ctrl-C or ./canopy down stops everything"
        )
        _tell_ready(request.address, token.result(), console)
        await asyncio.Event().wait()


def _tell_ready(address: str, token: str, console: Console) -> None:
    """The last line of `up`. The login link, a secret, goes to a person or a program, never to a log."""
    link = f"Canopy is ready: {address}/login?token={token}"
    if _is_detached():
        console.result(f"Canopy is ready: {address}")
        tell_starter(ready=link)
    elif is_journal():
        console.result(
            f"Canopy is ready: {address} (./canopy login prints a link that logs you in)"
        )
    else:
        console.result(link)


async def _start_broker(children: Supervisor, request: Request, broker: Broker, ours: bool) -> None:
    """A broker of our own starts without what a former tree of another shape, or with other models, left in it."""
    await children.start_broker()
    if not ours:
        return
    try:
        await management.prune_tree(broker.management["admin"], plan.edges(request))
    except management.ManagementError as error:
        raise CliError(str(error)) from error


async def _start_api(children: Supervisor, layout: Plan) -> str:
    """Returns a fresh login token once the API serves."""
    await children.run_once(layout.migrate)
    async with asyncio.TaskGroup() as together:
        token = together.create_task(children.run_once(layout.login_token))
        for spec in layout.apis:
            together.create_task(children.start_api(spec))
    return token.result()[-1].strip()


def _publish(
    request: Request, home: Home, broker: Broker, children: Supervisor, started: float
) -> None:
    record = {
        "pid": os.getpid(),
        "started": started,
        "port": request.port,
        "url": request.url,
        "address": request.address,
        "listen": request.listen,
        "amqp": broker.amqp,
        "management": broker.management.get("admin", ""),
        "models": list(request.models),
        "roots": request.roots,
        "asked": dict(request.asked),
        "upstream": request.upstream,
        "upstream_model": request.upstream_model,
        "engine": request.engine,
        "policy": request.policy,
        "processes": [asdict(each) for each in children.roster.recorded()],
    }
    credentials.write_private(home.instance_file, json.dumps(record, indent=1))


def _on_signals(children: Supervisor) -> "asyncio.Future[None]":
    """A future that the first signal completes; the second kills everything at once."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if stopping.done():
            children.roster.kill()
        else:
            stopping.set_result(None)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    return stopping


def _names(layout: Plan) -> str:
    return ", ".join(spec.name for spec in (*layout.roots, *layout.nodes))


def fail(error: CliError, stream: IO[str] | None = None) -> int:
    """Prints a failure, its detail below it, and returns the exit status."""
    out = stream or sys.stderr
    with contextlib.suppress(OSError):  # nobody reads it
        if error.detail:
            print(error.detail, file=out)
        print(f"canopy: {error}", file=out, flush=True)
    tell_starter(error=str(error))
    return error.code


def fail_os(error: OSError) -> int:
    """The same for an operating system's refusal."""
    return fail(explain_os_error(error))
