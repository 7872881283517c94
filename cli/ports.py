"""TCP ports: which are free, who holds one that is not."""

import json
import socket
from pathlib import Path

from cli.credentials import write_private
from cli.errors import CliError


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        _bind(host, port).close()
    except OSError:
        return False
    return True


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen yet. Raises CliError as `check_free` does."""
    check_free(host, port)
    return _bind(host, port)


def check_address(host: str) -> None:
    """Raises CliError when `host` is not an address of this machine."""
    if not is_free(host, 0):
        raise CliError(f"Cannot listen on {host}: it is not an address of this machine.")


def check_free(host: str, port: int) -> None:
    """Raises CliError when `port` is taken or `host` is not an address of this machine."""
    if is_free(host, port):
        return
    check_address(host)
    raise CliError(f"Port {port} is in use on {host}. Choose another with --port N.")


def reachable(host: str) -> str:
    """Where this machine itself finds what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison


def host_and_port(host: str, port: int) -> str:
    """Both as a URL has them: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_brackets(host: str) -> str:
    """The address as a socket takes it; people copy IPv6 addresses from URLs."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def resolved(host: str) -> str:
    """The address of a name: the broker takes addresses alone. Raises CliError."""
    try:
        found = socket.getaddrinfo(without_brackets(host), None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CliError(f"Cannot listen on {host!r}: {error.strerror}.", code=2) from error
    return str(found[0][4][0])


def pick(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different free ports, chosen by the kernel."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def remembered(file: Path, names: list[str], listen: str = "127.0.0.1") -> dict[str, int]:
    """A free port for each of `names`: last time's where it is still free, so that joined machines find us again.

    `listen`: the address that one of them listens on, beside the loopback device.
    """
    try:
        last = json.loads(file.read_text())
    except (OSError, ValueError):
        last = {}
    if not isinstance(last, dict):
        last = {}
    fresh = dict(zip(names, pick(len(names)), strict=True))
    ports = {name: last[name] if _usable(last.get(name), listen) else fresh[name] for name in names}
    write_private(file, json.dumps(ports))
    return ports


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: an old TIME_WAIT is no obstacle
        if bound.family == socket.AF_INET6:
            bound.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1
            )  # as asyncio does: `::` is not 0.0.0.0 too
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _usable(port: object, listen: str) -> bool:
    if not isinstance(port, int) or not 1024 <= port < 65536:
        return False
    return is_free("127.0.0.1", port) and is_free(listen, port)
