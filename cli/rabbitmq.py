"""A private RabbitMQ as an ordinary child process, with its own ports, data, users and port mapper.

It relies on these facts of RabbitMQ 3.10.8 on Erlang 25, which hold to 4.x:
- RUNNING_UNDER_SYSTEMD makes the start script exec the Erlang machine, so the pid that we started
  *is* the broker: signals reach it, and it can die with us.
- An Erlang node registers with `epmd` and, if there is none, starts one in the background that
  would outlive us. So every instance runs its own in the foreground, on its own port, where every
  node name is free.
- The management agent's event handler delays an orderly stop by 5 s: it calls an application
  controller that is waiting for it. Without that handler a stop takes 1 s.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli import (
    addresses,
    broker_sockets,
    credentials,
    environment,
    node_directory,
    node_tokens,
    plugins,
    ports,
)
from cli.errors import MachineError
from cli.home import REPOSITORY, Home
from cli.listener import Listener, reachable_addresses
from cli.node_directory import NodeDirectory
from cli.prepare import system
from cli.private_files import write_private
from cli.process import Spec
from topology.names import joined_user
from topology.prefix import with_prefix

if TYPE_CHECKING:
    from cli.certificate import Certificate

NODE = "canopy@localhost"
_ANSWER_SECONDS = 10.0
_MAX_DUMPS = 3
_CRASH_DUMP_BYTES = 20_000_000
_PORTS = ["amqp", "amqps", "management", "distribution", "epmd"]
_LOOPBACK = "127.0.0.1"
_REMOVE_HANDLER = "gen_event:delete_handler(rabbit_event, rabbit_mgmt_db_handler, [])."


@dataclass(frozen=True)
class Broker:
    """How to reach a broker: by user, its AMQP URL and, if known, that of its management API."""

    amqp: dict[str, str]
    management: dict[str, str]

    @classmethod
    def elsewhere(cls, amqp_url: str, management_url: str) -> "Broker":
        """A broker that is not ours (CANOPY_AMQP_URL), with one login for all users."""
        users = credentials.USERS
        management: dict[str, str] = {}
        if management_url:
            management = dict.fromkeys(users, management_url)
        return cls(dict.fromkeys(users, amqp_url), management)


@dataclass(frozen=True, slots=True)
class TlsListener:
    """An address of this machine at which the broker speaks TLS, and its certificate."""

    address: str
    certificate: "Certificate"


class PrivateBroker:
    """The files, commands and environment of one instance's broker; the supervisor runs it.

    It listens on loopback, and with `tls` also for other machines. `directory`: knows its nodes.
    """

    def __init__(
        self, home: Home, tls: TlsListener | None = None, directory: NodeDirectory | None = None
    ) -> None:
        self._folder = home.broker
        self._directory = directory
        self._home = home
        self._tls = tls
        self._prefix = addresses.own_prefix()
        self.passwords: dict[str, str] = {}
        self.ports: dict[str, int] = {}

    def prepare(self) -> None:
        """Writes this start's configuration. Raises MachineError without RabbitMQ."""
        if system.rabbitmq_server() is None or shutil.which("epmd") is None:
            raise _not_installed()
        for name in ("conf.d", "data", "home", "work"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self.passwords = credentials.load_or_create(self._folder / "credentials.json")
        listen = self._tls.address if self._tls else _LOOPBACK
        self.ports = ports.remembered(self._folder / "ports.json", _PORTS, listen)
        write_private(
            self._definitions,
            json.dumps(self._users(), indent=1),
        )
        (self._folder / "conf.d" / "90-instance.conf").write_text(self._instance_settings())
        write_private(self._folder / "advanced.config", self._advanced_settings())
        (self._folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        # Resolves `localhost` without the name service, which may be slow or wrong.
        (self._folder / "inetrc").write_text(
            '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'
        )
        self._write_cookie()

    @property
    def working_folder(self) -> Path:
        """Where the broker runs, and where Mnesia and Erlang leave crash dumps."""
        return self._folder / "work"

    def drop_old_dumps(self) -> None:
        """Removes all but the newest crash dumps, as far as the disk allows it."""
        with contextlib.suppress(OSError):
            files = [file for file in self.working_folder.iterdir() if file.is_file()]
            files.sort(key=_modified, reverse=True)
            for old in files[_MAX_DUMPS:]:
                old.unlink()

    def epmd(self) -> Spec:
        """The port mapper, in the foreground."""
        port = str(self.ports["epmd"])
        command = [shutil.which("epmd") or "epmd", "-port", port, "-address", "127.0.0.1"]
        return Spec("epmd", command, cwd=self.working_folder)

    def server(self) -> Spec:
        """The broker. Raises MachineError when it is not installed."""
        installed = system.rabbitmq_server()
        if installed is None:
            raise _not_installed()
        script, inside = plugins.server_script(installed, self._folder / "program", self._plugins)
        return Spec(
            "broker",
            [str(script)],
            {**self._environment(), **inside},
            # Closes its message store in order even when the launcher is killed.
            at_death_of_launcher=signal.SIGTERM,
            cwd=self.working_folder,
        )

    def address(self) -> Broker:
        """How this machine's processes reach the broker."""
        amqp = {user: self._amqp(user) for user in credentials.USERS}
        port = self.ports["management"]
        management = {}
        for user in ("api", "admin"):
            url = f"http://{self._login(user)}@127.0.0.1:{port}"
            management[user] = with_prefix(url, self._prefix.name)
        return Broker(amqp, management)

    def listener(self) -> Listener | None:
        """How other machines reach the broker; None if it listens on loopback alone."""
        if self._tls is None:
            return None
        certificate = self._tls.certificate
        reachable = certificate.names or reachable_addresses(self._tls.address)
        port, fingerprint = self.ports["amqps"], certificate.fingerprint
        return Listener(reachable, port, fingerprint, self._prefix.name)

    async def wait_epmd(self, within: float) -> None:
        """Returns once the port mapper accepts connections. Raises TimeoutError."""
        await _wait_accepting(self.ports["epmd"], within)

    async def wait_listening(self, within: float) -> None:
        """Returns once the broker accepts connections, its last step. Raises TimeoutError."""
        await _wait_accepting(self.ports["amqp"], within)

    async def answers(self) -> bool:
        """Whether the broker's Erlang machine runs: its management listener answers anything.

        A connection proves nothing, as the kernel accepts it for a stopped process.
        """
        question = b"GET / HTTP/1.0\r\n\r\n"
        return await _answers(self.ports["management"], question, b"HTTP/")

    async def epmd_answers(self) -> bool:
        """Whether the port mapper runs: it answers NAMES_REQ, starting with its port."""
        port = self.ports["epmd"]
        return await _answers(port, b"\x00\x01n", port.to_bytes(4, "big"))

    async def prepare_stop(self) -> None:
        """Removes the event handler that delays a stop; if that fails, the stop is only slow."""
        await self.evaluate(_REMOVE_HANDLER, 1.0)

    async def evaluate(self, expression: str, within: float) -> None:
        """Has the broker evaluate an Erlang expression; a failure is left to the next time."""
        call = shutil.which("erl_call")
        if not call:
            return
        quiet = asyncio.subprocess.DEVNULL
        with contextlib.suppress(OSError, TimeoutError):
            process = await asyncio.create_subprocess_exec(
                *(call, "-sname", NODE, "-e"),
                env={**os.environ, **self._environment()},
                stdin=asyncio.subprocess.PIPE,
                stdout=quiet,
                stderr=quiet,
            )
            try:
                await asyncio.wait_for(process.communicate(expression.encode()), within)
            finally:
                if process.returncode is None:
                    process.kill()

    def _users(self) -> dict[str, object]:
        """The broker's users. Raises StateError.

        Tokens may have expired while nothing ran to delete their users, and the broker listens for
        other machines before anybody can ask it to.
        """
        records = node_tokens.read(self._home).values()
        expired = [joined_user(token.name) for token in records if token.has_expired()]
        ended = [self._prefix.outside(user) for user in expired]
        return credentials.definitions(self.passwords, self._prefix, ended)

    @property
    def _definitions(self) -> Path:
        return self._folder / "definitions.json"

    @property
    def _plugins(self) -> tuple[str, ...]:
        if self._directory is None:
            return plugins.ENABLED
        return (*plugins.ENABLED, node_directory.PLUGIN)

    def _advanced_settings(self) -> str:
        """What rabbitmq.conf has no words for: a list of applications, as Erlang terms."""
        applications = [self._socket_settings()]
        if self._directory is not None:
            applications.append(node_directory.settings(self._directory, self._prefix))
        terms = ",\n".join(applications)
        return f"%% coding: utf-8\n[{terms}].\n"

    def _socket_settings(self) -> str:
        if self._tls is None:
            return broker_sockets.settings()
        certificate = self._tls.certificate
        return broker_sockets.settings(certificate.file, certificate.key)

    def _instance_settings(self) -> str:
        tls_listener = ""
        if self._tls is not None:  # an address without brackets, even for IPv6
            address = f"{self._tls.address}:{self.ports['amqps']}"
            tls_listener = f"listeners.ssl.canopy = {address}\n"
        log_format = ""
        if environment.read().log_format == "json":
            log_format = "log.file.formatter = json\n"
        return (
            "# Written by `canopy up` at every start; change the repository's rabbitmq.conf.\n"
            f"listeners.tcp.canopy = {_LOOPBACK}:{self.ports['amqp']}\n"
            f"{tls_listener}"
            f"management.tcp.port = {self.ports['management']}\n"
            f"load_definitions = {self._definitions}\n"
            f"{log_format}"
            f"{node_directory.BACKENDS if self._directory else ''}"
        )

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "HOME": str(folder / "home"),  # holds the Erlang cookie
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_CONF_ENV_FILE": os.devnull,  # not the machine's /etc/rabbitmq
            "RABBITMQ_CONFIG_FILE": str(REPOSITORY / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._home.logs),
            "RABBITMQ_DIST_PORT": str(self.ports["distribution"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_INETRC": str(folder / "inetrc"),
            "ERL_CRASH_DUMP": str(self.working_folder / "erl_crash.dump"),
            "ERL_CRASH_DUMP_BYTES": str(_CRASH_DUMP_BYTES),
            "ERL_AFLAGS": "-start_epmd false",  # never in the background, even if ours has died
            "ERL_EPMD_PORT": str(self.ports["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "LC_ALL": "C.UTF-8",
        }

    def _write_cookie(self) -> None:
        cookie = self._folder / "home" / ".erlang.cookie"
        cookie.unlink(missing_ok=True)
        write_private(cookie, self.passwords["cookie"])
        cookie.chmod(0o400)  # Erlang refuses a cookie that others could read

    def _login(self, user: str) -> str:
        return f"{user}:{urllib.parse.quote(self.passwords[user], safe='')}"

    def _amqp(self, user: str) -> str:
        url = f"amqp://{self._login(user)}@{_LOOPBACK}:{self.ports['amqp']}/%2F"
        return with_prefix(url, self._prefix.name)


def _not_installed() -> MachineError:
    return MachineError(f"RabbitMQ is not installed; run: {system.remedy(['rabbitmq-server'])}")


def _modified(file: Path) -> float:
    return file.stat().st_mtime


async def _wait_accepting(port: int, within: float) -> None:
    async with asyncio.timeout(within):
        while not await accepts(_LOOPBACK, port):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)


async def _answers(port: int, question: bytes, beginning: bytes) -> bool:
    """Whether the listener on this loopback port answers with `beginning` in time."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(question)
                return await reader.readexactly(len(beginning)) == beginning
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def accepts(host: str, port: int) -> bool:
    """Whether a server accepts connections there."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 1)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
