"""Nodes whose passwords an LDAP directory checks: what RabbitMQ's own plugin is configured with.

The broker asks its own users first (`api`, `admin`, `node`), then the directory. Who logs in by the
directory needs membership of a group, gets no tags, and has the rights of a node that joins by a
token (broker/joined_users.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from broker import joined_users
from cli.errors import SettingError
from topology import names
from topology.prefix import Prefix

PLUGIN = "rabbitmq_auth_backend_ldap"
BACKENDS = "auth_backends.1 = internal\nauth_backends.2 = ldap\n"
_URL = "CANOPY_NODE_LDAP_URL"
_TIMEOUT = 5000  # milliseconds; without one, a directory that is down holds a login for ever
_PORTS = {"ldap": 389, "ldaps": 636}
_SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANY_NODE, _ANY_MODEL = "anynode", "any model"  # stand for others in patterns that are made here


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    """How the broker asks the directory. `user_dn`: with `${username}` where the name goes."""

    servers: tuple[str, ...]
    port: int
    tls: bool
    start_tls: bool
    ca: str
    user_dn: str
    group: str
    member: str
    bind_dn: str
    bind_password: str = field(repr=False)


def read(environ: Mapping[str, str]) -> NodeDirectory | None:
    """What the environment asks for; None without CANOPY_NODE_LDAP_URL. Raises SettingError."""
    addresses = environ.get(_URL, "").replace(",", " ").split()
    if not addresses:
        return None
    schemes, servers, ports = _parse(addresses)
    start_tls = _yes_or_no(environ, "CANOPY_NODE_LDAP_START_TLS")
    [scheme], [port] = schemes, ports
    _check_encryption(scheme, servers, start_tls)
    encrypted = scheme == "ldaps" or bool(start_tls)
    return NodeDirectory(
        servers=servers,
        port=port,
        tls=scheme == "ldaps",
        start_tls=bool(start_tls),
        ca=_ca(environ.get("CANOPY_NODE_LDAP_CA", ""), needed=encrypted),
        user_dn=_user_dn(environ.get("CANOPY_NODE_LDAP_DN", "")),
        group=_dn(environ, "CANOPY_NODE_LDAP_GROUP"),
        member=environ.get("CANOPY_NODE_LDAP_MEMBER") or "member",
        bind_dn=environ.get("CANOPY_NODE_LDAP_BIND_DN", ""),
        bind_password=_password(environ),
    )


def _check_encryption(scheme: str, servers: tuple[str, ...], start_tls: bool | None) -> None:
    """Refuses what would send passwords unencrypted, or to a server whose name is not checked."""
    local = all(server in _LOOPBACK for server in servers)
    if scheme == "ldap" and start_tls is None and not local:
        raise SettingError(
            f"{_URL} would send passwords unencrypted: use ldaps://, or set "
            "CANOPY_NODE_LDAP_START_TLS to yes (or to no, on a network that you trust)."
        )
    if scheme == "ldaps" and start_tls:
        raise SettingError(f"CANOPY_NODE_LDAP_START_TLS is for ldap://; {_URL} has ldaps://.")
    if (scheme == "ldaps" or start_tls) and any(map(_is_address, servers)):
        raise SettingError(
            f"{_URL} must name the directory as its certificate does, not by its address."
        )
    if start_tls and len(servers) > 1:
        raise SettingError(f"{_URL} may have several servers with ldaps://, not with StartTLS.")


def settings(directory: NodeDirectory, prefix: Prefix) -> str:
    """The plugin's part of RabbitMQ's advanced.config: Erlang terms."""
    servers = ", ".join(_string(server) for server in directory.servers)
    terms = [
        f"{{servers, [{servers}]}}",
        f"{{port, {directory.port}}}",
        f"{{timeout, {_TIMEOUT}}}",
        f"{{use_ssl, {_boolean(directory.tls)}}}",
        f"{{use_starttls, {_boolean(directory.start_tls)}}}",
        f"{{user_dn_pattern, {_string(directory.user_dn)}}}",
        f"{{other_bind, {_other_bind(directory)}}}",
        f"{{vhost_access_query, {_may_enter(directory, prefix)}}}",
        f"{{resource_access_query, {_may_use(prefix)}}}",
        f"{{topic_access_query, {_may_send(prefix)}}}",
        "{tag_queries, []}",
        "{log, false}",
    ]
    if directory.tls or directory.start_tls:
        terms.insert(5, f"{{ssl_options, {_tls_options(directory)}}}")
    inner = ",\n   ".join(terms)
    return f"{{{PLUGIN},\n  [{inner}]}}"


def _may_enter(directory: NodeDirectory, prefix: Prefix) -> str:
    """A member of the group, under the name of a joined node's user, which no other user has."""
    clauses = [
        _match("${username}", rf"^{_user(prefix)}\z"),
        f"{{in_group, {_string(directory.group)}, {_string(directory.member)}}}",
    ]
    return _all(clauses)


def _may_use(prefix: Prefix) -> str:
    """The rights of a joined node's user, by kind of access."""
    rights = joined_users.rights(_ANY_NODE, prefix)
    kinds = {"configure": rights.configure, "write": rights.write, "read": rights.read}
    clauses = []
    for kind, pattern in kinds.items():
        query = _match("${username} ${name}", rf"^{_user(prefix)} {_of_that_node(pattern)}\z")
        clauses.append(f"{{permission, {kind}, {query}}}")
    return _by_kind(clauses)


def _may_send(prefix: Prefix) -> str:
    """The same for keys on topic exchanges. The directory does not know a node's model."""
    keys = {
        names.EVENTS_EXCHANGE: joined_users.event_keys(_ANY_NODE, _ANY_MODEL),
        names.JOINED_EXCHANGE: joined_users.joined_keys(_ANY_MODEL),
    }
    either = []
    for exchange, pattern in keys.items():
        either.append(f"{re.escape(prefix.outside(exchange))} {_of_that_node(pattern)}")
    subject = "${username} ${name} ${routing_key}"
    write = _match(subject, rf"^{_user(prefix)} ({'|'.join(either)})\z")
    return _by_kind([f"{{permission, write, {write}}}", "{permission, read, {constant, false}}"])


def _user(prefix: Prefix) -> str:
    """A pattern of joined nodes' users, whose first group is the node's name.

    Patterns end in \\z: `$` would also let a newline follow.
    """
    begins = prefix.outside(names.joined_user(""))
    return f"{re.escape(begins)}({names.NODE_NAME})"


def _of_that_node(pattern: str) -> str:
    """A whole pattern as part of another one: of any model, of the name that the first group found.

    The name is in the text that is matched, never in the pattern, whatever letters it has.
    """
    inner = pattern.removeprefix("^").removesuffix("$").replace(_ANY_NODE, r"\1")
    return inner.replace(names.tree_digest(_ANY_MODEL), f"[0-9a-f]{{{names.TREE_LETTERS}}}")


def _by_kind(clauses: list[str]) -> str:
    return "{for, [" + ",\n      ".join(clauses) + "]}"


def _tls_options(directory: NodeDirectory) -> str:
    """Verifies the certificate, and that it is for the server; StartTLS does not know its name."""
    options = [f"{{cacertfile, {_string(directory.ca)}}}", "{verify, verify_peer}", "{depth, 4}"]
    if directory.start_tls:
        options.append(f"{{server_name_indication, {_string(directory.servers[0])}}}")
    return f"[{', '.join(options)}]"


def _other_bind(directory: NodeDirectory) -> str:
    """As whom the group is read: an account of its own, or else the node itself."""
    if not directory.bind_dn:
        return "as_user"
    return f"{{{_string(directory.bind_dn)}, {_string(directory.bind_password)}}}"


def _match(subject: str, pattern: str) -> str:
    return f"{{match, {{string, {_string(subject)}}}, {{string, {_string(pattern)}}}}}"


def _all(clauses: list[str]) -> str:
    return "{'and', [" + ",\n      ".join(clauses) + "]}"


def _string(text: str) -> str:
    """An Erlang string of the text's UTF-8 bytes, which is what travels to the directory."""
    parts = []
    for byte in text.encode():
        letter = chr(byte)
        plain = letter.isascii() and letter.isprintable() and letter not in '"\\'
        parts.append(letter if plain else f"\\x{{{byte:x}}}")
    return f'"{"".join(parts)}"'


def _boolean(value: bool) -> str:
    return str(value).lower()


def _parse(addresses: list[str]) -> tuple[set[str], tuple[str, ...], set[int]]:
    schemes: set[str] = set()
    servers: list[str] = []
    ports: set[int] = set()
    for address in addresses:
        try:
            parts = urlsplit(address)
            port = parts.port or _PORTS[parts.scheme]
        except (KeyError, ValueError):
            raise _bad_url(address) from None
        if not parts.hostname or parts.path.strip("/") or parts.query or "@" in parts.netloc:
            raise _bad_url(address)
        schemes.add(parts.scheme)
        servers.append(parts.hostname)
        ports.add(port)
    if len(schemes) > 1 or len(ports) > 1:
        raise SettingError(f"The servers of {_URL} must have one scheme and one port.")
    return schemes, tuple(servers), ports


def _bad_url(address: str) -> SettingError:
    return SettingError(f"{_URL} must be like ldaps://ldap.example.org, not {address[:100]!r}.")


def _is_address(server: str) -> bool:
    try:
        ip_address(server)
    except ValueError:
        return False
    return True


def _yes_or_no(environ: Mapping[str, str], name: str) -> bool | None:
    text = environ.get(name, "").strip().lower()
    if text not in ("", "yes", "no"):
        raise SettingError(f"{name} must be yes or no, not {text[:50]!r}.")
    return None if not text else text == "yes"


def _user_dn(text: str) -> str:
    if text.count("${username}") != 1 or not _is_printable(text):
        raise SettingError(
            "CANOPY_NODE_LDAP_DN must be a node's DN with ${username} for its name, such as "
            f"cn=${{username}},ou=nodes,dc=example,dc=org, not {text[:100]!r}."
        )
    return text


def _dn(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    if not re.match(r"[A-Za-z][A-Za-z0-9.-]*\s*=", text) or not _is_printable(text):
        raise SettingError(
            f"{name} must be the DN of the nodes' group, such as "
            f"cn=canopy-nodes,ou=groups,dc=example,dc=org, not {text[:100]!r}."
        )
    return text


def _ca(text: str, *, needed: bool) -> str:
    file = Path(text or _SYSTEM_CA)
    if needed and not file.is_file():
        raise SettingError(
            "CANOPY_NODE_LDAP_CA must name a file with the certificate of the authority that has "
            f"signed the directory's; there is no {str(file)[:200]!r}."
        )
    return str(file.absolute())


def _password(environ: Mapping[str, str]) -> str:
    file = environ.get("CANOPY_NODE_LDAP_BIND_PASSWORD_FILE", "")
    if not file:
        return ""
    try:
        return Path(file).read_text().rstrip("\r\n")
    except OSError as error:
        raise SettingError(
            f"CANOPY_NODE_LDAP_BIND_PASSWORD_FILE cannot be read ({file}): {error.strerror}."
        ) from error


def _is_printable(text: str) -> bool:
    """Erlang reads the file as UTF-8; a control character would end a string or hide."""
    return text.isprintable()
