"""TCP ports and addresses of this machine."""

import contextlib
import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path

from cli.errors import MachineError, UsageError
from cli.private_files import read_object, write_private

EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with

_LOWEST = 10_240  # the ports below are those of well-known services
_FEWEST = 5_000  # to choose from, or two that choose at a time often choose the same
_MOST_TRIES = 200


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        _bind(host, port).close()
    except OSError:
        return False
    return True


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises MachineError as `check_free` does."""
    check_free(host, port)
    return _bind(host, port)


def check_address(host: str) -> None:
    """Raises MachineError when `host` is not an address of this machine."""
    if not is_free(host, 0):
        raise MachineError(f"Cannot listen on {host}: it is not an address of this machine.")


def check_free(host: str, port: int) -> None:
    """Raises MachineError when `port` is taken or `host` is not an address of this machine."""
    if is_free(host, port):
        return
    check_address(host)
    raise MachineError(f"Port {port} is in use on {host}. Choose another with --port N.")


def reachable(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison


def host_and_port(host: str, port: int) -> str:
    """Both as in a URL, where an IPv6 address has brackets."""
    if ":" in host:
        return f"[{host}]:{port}"
    return f"{host}:{port}"


def without_brackets(host: str) -> str:
    """The address as a socket takes it; people copy IPv6 addresses from URLs."""
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    return host


def resolved(host: str) -> str:
    """The address of a name, as the broker takes no names. Raises UsageError."""
    try:
        entries = socket.getaddrinfo(without_brackets(host), None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"Cannot listen on {host!r}: {error.strerror}.") from error
    _, _, _, _, address = entries[0]
    return str(address[0])


def pick(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different free ports.

    None of those that the kernel gives to outgoing connections, if there are others: it could give
    one away before its server listens, or while that is started again. Raises MachineError.
    """
    numbers = _for_servers()
    ports: list[int] = []
    with contextlib.ExitStack() as open_sockets:
        for _ in range(_MOST_TRIES):
            if len(ports) == count:
                break
            probe = open_sockets.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((host, random.choice(numbers)))
                ports.append(int(probe.getsockname()[1]))
    if len(ports) < count:
        raise MachineError(f"Too few ports are free on {host}.")
    return ports


def _for_servers() -> Sequence[int]:
    """Ports to choose from; 0 stands for the kernel's choice."""
    try:
        lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return [0]
    ports = range(_LOWEST, int(lowest))
    return ports if len(ports) >= _FEWEST else [0]


def remembered(file: Path, names: list[str], listen: str = "127.0.0.1") -> dict[str, int]:
    """A free port per name: the last one while it is free, so that joined machines reconnect.

    `listen`: an address that must be free too, beside the loopback address.
    """
    last = read_object(file)
    ports = dict(zip(names, pick(len(names)), strict=True))
    for name in names:
        if _usable(last.get(name), listen):
            ports[name] = last[name]
    write_private(file, json.dumps(ports))
    return ports


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET
    if ":" in host:
        family = socket.AF_INET6
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As servers do: connections in TIME_WAIT do not block the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # As asyncio does: `::` does not include 0.0.0.0.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _usable(port: object, listen: str) -> bool:
    if not isinstance(port, int) or not 1024 <= port < 65536:
        return False
    return is_free("127.0.0.1", port) and is_free(listen, port)
