"""How other machines reach the broker: where it listens with TLS, and what they pin.

Imported by `status`: what only others need is imported where it is used.
"""

import socket
from typing import Any, NamedTuple
from urllib.parse import quote

from cli.ports import EVERY_ADDRESS, host_and_port


class Listener(NamedTuple):
    """`addresses`: of this machine's interfaces, or names, the likeliest first; `fingerprint`: ""
    where the certificate is an authority's, and is to be checked as usual; `prefix`: of all names
    in the broker.
    """

    addresses: tuple[str, ...]
    port: int
    fingerprint: str
    prefix: str

    def urls(self, user: str, password: str, vhost: str = "/") -> list[str]:
        """The broker's URL at each address. They have the password in them."""
        from topology.prefix import with_prefix

        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        end = quote(vhost, safe="")
        if self.fingerprint:
            end += f"?fingerprint={self.fingerprint}"
        places = [host_and_port(address, self.port) for address in self.addresses]
        urls = [f"amqps://{login}@{place}/{end}" for place in places]
        return [with_prefix(url, self.prefix) for url in urls]


def from_record(record: dict[str, Any]) -> Listener | None:
    """That of a running instance; None if its broker is reached from its own machine alone."""
    listener = record.get("tls")
    if not listener:
        return None
    return Listener(
        tuple(listener["addresses"]),
        listener["port"],
        listener["fingerprint"],
        listener["prefix"],
    )


def reachable_addresses(listen: str) -> tuple[str, ...]:
    """The addresses at which others may reach what listens there: `listen` itself, or those of
    this machine's interfaces where it listens on all of them. None are loopback or link-local.
    """
    if listen not in EVERY_ADDRESS:
        return (listen,)
    import psutil

    family = socket.AF_INET
    if ":" in listen:
        family = socket.AF_INET6
    states = psutil.net_if_stats()
    addresses = []
    for interface, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == family and states[interface].isup and _is_reachable(entry.address):
                addresses.append(entry.address)
    return tuple(addresses)


def _is_reachable(address: str) -> bool:
    import ipaddress

    parsed = ipaddress.ip_address(address.partition("%")[0])
    return not (parsed.is_loopback or parsed.is_link_local)
