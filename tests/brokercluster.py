"""Three real RabbitMQ brokers as one cluster on this machine; each can be killed or cut off.

Each is a private broker (cli.rabbitmq) with its own folder and ports; they share users, Erlang's
cookie and one port mapper. A broker is cut off as by a broken network: its links to the others end
and fail again, because it expects another cookie, while its clients still reach it.
"""

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cli.home import Home
from cli.process import Spec
from cli.rabbitmq import Broker, PrivateBroker
from tests.realbroker import evaluate, launch, stop

NAMES = ("canopy1@localhost", "canopy2@localhost", "canopy3@localhost")
START_SECONDS = 120.0
# a broker that says nothing is given up after this many seconds (60 by default)
_ERL_ARGS = "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"
_KERNEL = "-kernel net_ticktime 8"

_CUT = (
    "[begin erlang:set_cookie(Peer, cut_off), erlang:disconnect_node(Peer) end || Peer <- {peers}]."
)
_HEAL = "[erlang:set_cookie(Peer, erlang:get_cookie()) || Peer <- {peers}]."


class ClusterBroker:
    """One of the brokers. Waiting and evaluating block: beside an event loop, use threads."""

    def __init__(
        self, name: str, home: Home, epmd_port: int | None, peers: tuple[str, ...]
    ) -> None:
        self.name = name
        self._home = home
        self._peers = peers
        self._private = PrivateBroker(home)
        self._private.prepare()
        self._server = self._private.server()
        env = self._server.env
        (home.broker / "conf.d" / "95-cluster.conf").write_text(_settings())
        self._env: Mapping[str, str] = {
            **env,
            "RABBITMQ_NODENAME": name,
            "ERL_EPMD_PORT": str(epmd_port or self._private.ports["epmd"]),
            _ERL_ARGS: f"{env[_ERL_ARGS]} {_KERNEL}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> Broker:
        """This broker alone."""
        return self._private.address()

    @property
    def port(self) -> int:
        """Of its AMQP listener."""
        return self._private.ports["amqp"]

    @property
    def epmd(self) -> tuple[Spec, int]:
        """The port mapper that all of them can use."""
        return self._private.epmd(), self._private.ports["epmd"]

    def start(self) -> None:
        """Begins to start. Not in a thread: the kernel would end the broker with it."""
        spec = replace(
            self._server, name=self.name, env=self._env, at_death_of_launcher=signal.SIGKILL
        )
        self._process = launch(spec, self._home.logs / "broker.log")

    def wait_up(self) -> None:
        """Returns once clients can connect, and the management API, which comes up apart, too."""
        self._wait(lambda: _accepts(self.port), "take clients")
        self._wait(lambda: _accepts(self._private.ports["management"]), "take management requests")

    def wait_paused(self) -> None:
        """Returns once it has closed its listeners, as a minority does."""
        self._wait(lambda: not _accepts(self.port), "pause")

    def wait_joined(self) -> None:
        """Returns once it sees all the others running."""
        running = "[Peer || Peer <- nodes(), rabbit:is_running(Peer)]."
        self._wait(lambda: all(peer in self.evaluate(running) for peer in self._peers), "join")

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def cut_off(self) -> None:
        """Ends its links to the other brokers for good: a minority of one."""
        self.evaluate(_CUT.format(peers=self._peer_list))

    def heal(self) -> None:
        """Lets links be made again."""
        self.evaluate(_HEAL.format(peers=self._peer_list))

    def evaluate(self, expression: str) -> str:
        """The value of an Erlang expression in the broker, as text."""
        return evaluate(self.name, self._env, expression)

    @property
    def _peer_list(self) -> str:
        return f"[{', '.join(map(repr, self._peers))}]"  # repr quotes like Erlang's atoms

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        """Asks until it is so: another machine's broker has no event for us."""
        deadline = time.monotonic() + START_SECONDS
        while not reached():
            if (
                self._process is None
                or self._process.poll() is not None
                or time.monotonic() > deadline
            ):
                log = (self._home.logs / "broker.log").read_text()
                raise RuntimeError(f"{self.name} did not {what}:\n{log[-2000:]}")
            threading.Event().wait(0.1)


class Cluster:
    """The three together."""

    def __init__(self, folder: Path) -> None:
        self.brokers: list[ClusterBroker] = []
        for name in NAMES:
            home = Home(folder / name.split("@")[0])
            home.make()
            if self.brokers:
                shutil.copy(folder / "canopy1" / "broker" / "credentials.json", home.broker)
            peers = tuple(other for other in NAMES if other != name)
            self.brokers.append(
                ClusterBroker(name, home, self.brokers[0].epmd[1] if self.brokers else None, peers)
            )

    @property
    def address(self) -> Broker:
        """All of them, as CANOPY_AMQP_URL takes it."""
        each = [broker.address for broker in self.brokers]
        amqp = {user: ",".join(one.amqp[user] for one in each) for user in each[0].amqp}
        return Broker(amqp, each[0].management)

    def start(self) -> None:
        """Returns when all of them run as one cluster."""
        for broker in self.brokers:
            broker.start()
        for broker in self.brokers:
            broker.wait_up()
        for broker in self.brokers:
            broker.wait_joined()


@contextmanager
def broker_cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster; whatever is left of it ends with the block."""
    cluster = Cluster(folder)
    epmd = launch(cluster.brokers[0].epmd[0], folder / "epmd.log")
    try:
        cluster.start()
        yield cluster
    finally:
        for broker in cluster.brokers:
            broker.kill()  # its data go with the folder; an orderly stop waits for the others
        stop(epmd)


def _settings() -> str:
    members = "".join(
        f"cluster_formation.classic_config.nodes.{number} = {name}\n"
        for number, name in enumerate(NAMES, 1)
    )
    return (
        "cluster_formation.peer_discovery_backend = classic_config\n"
        f"{members}"
        "cluster_partition_handling = pause_minority\n"
    )


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
