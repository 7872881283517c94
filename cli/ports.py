"""TCP ports: which are free, who holds one that is not."""

import json
import socket
from pathlib import Path

from cli.errors import CliError


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: an old TIME_WAIT is no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def check_free(host: str, port: int) -> None:
    """Raises CliError when `port` is taken or `host` is not an address of this machine."""
    if is_free(host, port):
        return
    if not is_free(host, 0):
        raise CliError(f"Cannot listen on {host}: it is not an address of this machine.")
    raise CliError(f"Port {port} is in use on {host}. Choose another with --port N.")


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


def remembered(file: Path, names: list[str]) -> dict[str, int]:
    """A free port for each of `names`: last time's where it is still free, so that joined machines find us again."""
    try:
        last = json.loads(file.read_text())
    except (OSError, ValueError):
        last = {}
    fresh = dict(zip(names, pick(len(names)), strict=True))
    ports = {name: last[name] if _usable(last.get(name)) else fresh[name] for name in names}
    file.write_text(json.dumps(ports))
    return ports


def _usable(port: object) -> bool:
    return isinstance(port, int) and 1024 <= port < 65536 and is_free("127.0.0.1", port)
