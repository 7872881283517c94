"""The broker's URLs for a user of another machine."""

import ipaddress
import re
from urllib.parse import quote, unquote, urlsplit

from cli import listener
from cli.errors import StateError, UsageError
from cli.instance import Record
from cli.ports import host_and_port
from topology.prefix import Prefix, with_prefix

_HOST = re.compile(r"[\w.:%-]{1,253}")  # a name, or an address of either kind
_LISTEN = "start it with ./canopy up --listen 0.0.0.0, or with one address of this machine"


def for_others(
    record: Record, user: str, password: str, addresses: tuple[str, ...] = ()
) -> list[str]:
    """The broker's URL at each address that other machines can reach, or at `addresses`; last the
    way through the pages' address, if tunnels are on and it is known.

    Raises StateError if there is none.
    """
    tunnels = _tunnels(record, user, password)
    try:
        return [*_direct(record, user, password, addresses), *tunnels]
    except StateError:
        if not tunnels or addresses:
            raise
        return tunnels


def through_pages(pages: str, url: str) -> str:
    """The way through the pages' address to what `url` leads to, with the same login."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    place = unquote(parts.path.removeprefix("/")) or "/"
    options = "" if place == "/" else f"?vhost={quote(place, safe='')}"
    target = urlsplit(pages)
    changed = f"{target.scheme}://{login}@{target.netloc}{target.path.rstrip('/')}/{options}"
    return with_prefix(changed, Prefix.of(url).name)


def _tunnels(record: Record, user: str, password: str) -> list[str]:
    if not record.get("tunnel") or not record["address"].startswith("https://"):
        return []
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    own = urlsplit(record["amqp"]["node"].partition(",")[0])
    place = own._replace(netloc=f"{login}@{own.hostname}")
    return [through_pages(record["address"], place.geturl())]


def _direct(record: Record, user: str, password: str, addresses: tuple[str, ...]) -> list[str]:
    own = listener.from_record(record)
    if own is not None:
        if not addresses and not own.addresses:
            raise StateError("This machine has no address that others reach; say --address HOST.")
        urls = []
        for host, port in map(_host_and_port, addresses or own.addresses):
            place = own._replace(addresses=(host,), port=port or own.port)
            urls += place.urls(user, password, vhost(record))
        return urls
    urls = [url.strip() for url in record["amqp"]["node"].split(",") if url.strip()]
    if record["amqp"]["node"] != record["amqp"]["admin"]:  # a broker of our own
        raise StateError(f"Canopy's broker is reached from this machine alone: {_LISTEN}.")
    return _elsewhere(urls, user, password, addresses)


def _elsewhere(urls: list[str], user: str, password: str, addresses: tuple[str, ...]) -> list[str]:
    """Those of the operator's broker, with another login."""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    changed = []
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not addresses and _is_loopback(host):
            raise StateError(
                f"CANOPY_AMQP_URL names the broker {host!r}, which means another machine there: "
                "say --address HOST."
            )
        for name, chosen in map(_host_and_port, addresses or (host,)):
            port = chosen or parts.port
            place = host_and_port(name, port) if port else name
            changed.append(parts._replace(netloc=f"{login}@{place}").geturl())
    return list(dict.fromkeys(changed))


def _host_and_port(address: str) -> tuple[str, int | None]:
    """Of `HOST`, `HOST:PORT`, `::1` or `[::1]:PORT`. Raises UsageError."""
    host, port = address, ""
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    if not _HOST.fullmatch(host) or (port and not 0 < int(port if port.isdecimal() else 0) < 65536):
        raise UsageError(f"--address must be HOST or HOST:PORT, not {address!r}.")
    return host, int(port) if port else None


def vhost(record: Record) -> str:
    """The virtual host of this instance."""
    url, _, _ = record["amqp"]["node"].partition(",")
    return unquote(urlsplit(url).path.removeprefix("/")) or "/"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
