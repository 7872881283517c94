"""Options of the private broker's sockets that rabbitmq.conf has no words for, as Erlang terms.

- IP_FREEBIND: the broker starts even if the address of its TLS listener is not there, and serves it
  once it is. Else a lost address would keep it, and with it the whole instance, from restarting.
- Keepalive and TCP_USER_TIMEOUT, on TLS connections, as those come from other machines: the kernel
  ends a connection whose peer's *kernel* has been silent for LOST_SECONDS. It answers however slow
  or busy the peer's processes are, so only a cut link, a dead machine, or a process that reads
  nothing for so long counts as lost. Heartbeats notice a frozen process, more slowly.
"""

import json
from pathlib import Path

LOST_SECONDS = 6
PROBE_SECONDS = 2

# Linux's numbers
_IPPROTO_IP, _IP_FREEBIND = 0, 15
_IPPROTO_TCP, _TCP_KEEPIDLE, _TCP_KEEPINTVL, _TCP_USER_TIMEOUT = 6, 4, 5, 18


def settings(certificate: Path | None = None, key: Path | None = None) -> str:
    """RabbitMQ's part of `advanced.config`. A list in it replaces all of rabbitmq.conf's."""
    parts = [f"{{tcp_listen_options, [{', '.join(_listen_options())}]}}"]
    if certificate is not None and key is not None:
        parts.append(f"{{ssl_options, [{', '.join(_tls_options(certificate, key))}]}}")
    joined = ",\n  ".join(parts)
    return f"{{rabbit, [\n  {joined}\n]}}"


def _listen_options() -> list[str]:
    return [
        "{backlog, 512}",
        "{nodelay, true}",
        "{exit_on_close, false}",
        _raw(_IPPROTO_IP, _IP_FREEBIND, 1),
    ]


def _tls_options(certificate: Path, key: Path) -> list[str]:
    return [
        f"{{certfile, {_text(certificate)}}}",
        f"{{keyfile, {_text(key)}}}",
        f"{{cacertfile, {_text(certificate)}}}",  # the rest of the certificate's chain, if any
        "{versions, ['tlsv1.3', 'tlsv1.2']}",
        "{verify, verify_none}",  # nodes prove who they are by user and password
        "{fail_if_no_peer_cert, false}",
        "{keepalive, true}",
        _raw(_IPPROTO_TCP, _TCP_KEEPIDLE, PROBE_SECONDS),
        _raw(_IPPROTO_TCP, _TCP_KEEPINTVL, PROBE_SECONDS),
        _raw(_IPPROTO_TCP, _TCP_USER_TIMEOUT, LOST_SECONDS * 1000),
    ]


def _raw(level: int, option: int, value: int) -> str:
    """An option by its numbers."""
    return f"{{raw, {level}, {option}, <<{value}:32/native>>}}"


def _text(file: Path) -> str:
    """A path as an Erlang string."""
    return json.dumps(str(file), ensure_ascii=False)
