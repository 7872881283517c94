"""`gateway`: questions over plain sockets, for phones, microcontrollers and `nc`."""

import asyncio
from pathlib import Path

import click

from cli import home as homes
from cli import instance, ports
from cli.errors import UsageError


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9000,
    show_default=True,
    help="Where clients connect; 0 takes any free port.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--api", metavar="URL", help="The API to ask; default: the instance's that runs here."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
def gateway(
    port: int, host: str, api: str | None, tls_cert: Path | None, tls_key: Path | None
) -> None:
    """Answer questions over plain sockets: a line of JSON in, lines out.

    For phones, microcontrollers and nc. The first line is an API key (./canopy key create), each
    further one a question, {"text": "Hello", "timestamp": 1}. Try it:

    (echo KEY; echo '{"text": "Hello", "timestamp": 1}') | nc -q 60 localhost 9000

    Without --tls-cert nothing is encrypted, the key neither: use it on this machine or a network
    that you trust. docs/gateway.md has the protocol, and clients in Python and C.
    """
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("TLS needs both --tls-cert and --tls-key.")
    if api is None:
        api = str(instance.running(homes.read())["url"])
    from cli.gateway import server

    settings = server.Settings(ports.without_brackets(host), port, api, tls_cert, tls_key)
    asyncio.run(server.run(settings))
