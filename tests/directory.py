"""A private OpenLDAP server for tests, with people, nodes and groups, on loopback."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ldap
import ldap.modlist
import pytest

from cli.prepare.system import openldap_server
from tests.instance import free_port
from tests.realbroker import stop

BASE = "dc=example,dc=org"
MANAGER = f"cn=manager,{BASE}"
READER = f"cn=reader,{BASE}"  # may search, as services do
PASSWORD = "an open secret of the directory"
START_SECONDS = 60

NODES_GROUP = f"cn=canopy-nodes,ou=groups,{BASE}"
USERS_GROUP = f"cn=canopy,ou=groups,{BASE}"
STAFF_GROUP = f"cn=canopy-staff,ou=groups,{BASE}"
ADMIN_GROUP = f"cn=canopy-admins,ou=groups,{BASE}"

_SETTINGS = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
pidfile {folder}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
sizelimit 500
TLSCertificateFile {folder}/certificate.pem
TLSCertificateKeyFile {folder}/key.pem
TLSCACertificateFile {folder}/ca.pem
database mdb
maxsize 10485760
suffix "{base}"
rootdn "{manager}"
rootpw "{password}"
directory {folder}/data
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
"""

_CONTENT = """
dn: {base}
objectClass: dcObject
objectClass: organization
dc: example
o: example

dn: ou=nodes,{base}
objectClass: organizationalUnit
ou: nodes

dn: ou=people,{base}
objectClass: organizationalUnit
ou: people

dn: ou=groups,{base}
objectClass: organizationalUnit
ou: groups

dn: {reader}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: {password}
"""


class Directory:
    """The running server. `url` is unencrypted, `tls_url` is not; `ca` has signed the latter's."""

    def __init__(self, folder: Path, port: int, tls_port: int) -> None:
        self.port, self.tls_port = port, tls_port
        self.url = f"ldap://127.0.0.1:{port}"
        # libldap puts the machine's own name in the place of `localhost` when it verifies it.
        self.tls_url = f"ldaps://127.0.0.1:{tls_port}"
        self.ca = folder / "ca.pem"
        self.log = folder / "slapd.log"

    def add_person(self, name: str, *groups: str, **attributes: str) -> str:
        """A person with PASSWORD, and their DN."""
        dn = f"uid={name},ou=people,{BASE}"
        fields = {"uid": name, "cn": name, "sn": name, **attributes}
        self._add(dn, "inetOrgPerson", fields)
        for group in groups:
            self.join(group, dn)
        return dn

    def add_node(self, name: str, *groups: str) -> str:
        """A node's account with PASSWORD, and its DN."""
        dn = f"cn={name},ou=nodes,{BASE}"
        self._add(dn, "organizationalRole simpleSecurityObject", {"cn": name})
        for group in groups:
            self.join(group, dn)
        return dn

    def add_group(self, name: str, classes: str, **fields: str) -> str:
        """A group of any kind, and its DN."""
        dn = f"cn={name},ou=groups,{BASE}"
        self._add(dn, classes, {"cn": name, **fields}, password="")
        return dn

    def join(self, group: str, dn: str) -> None:
        """Makes it a member; a group exists once it has one."""
        with self._connection() as connection:
            try:
                connection.modify_s(group, [(ldap.MOD_ADD, "member", [dn.encode()])])
            except ldap.NO_SUCH_OBJECT:
                name = group.partition(",")[0].removeprefix("cn=")
                fields = {"objectClass": [b"groupOfNames"], "cn": [name.encode()]}
                fields["member"] = [MANAGER.encode(), dn.encode()]  # a group is never empty
                connection.add_s(group, ldap.modlist.addModlist(fields))

    def leave(self, group: str, dn: str) -> None:
        """Ends a membership."""
        with self._connection() as connection:
            connection.modify_s(group, [(ldap.MOD_DELETE, "member", [dn.encode()])])

    def remove(self, dn: str) -> None:
        """Removes an entry."""
        with self._connection() as connection:
            connection.delete_s(dn)

    def rename(self, dn: str, name: str) -> None:
        """Gives a person another name."""
        with self._connection() as connection:
            connection.rename_s(dn, f"uid={name}")

    def set(self, dn: str, attribute: str, value: str) -> None:
        """Replaces an attribute."""
        with self._connection() as connection:
            connection.modify_s(dn, [(ldap.MOD_REPLACE, attribute, [value.encode()])])

    def _add(self, dn: str, classes: str, fields: dict[str, str], password: str = PASSWORD) -> None:
        entry = {name: [value.encode()] for name, value in fields.items()}
        entry["objectClass"] = [each.encode() for each in classes.split()]
        if password:
            entry["userPassword"] = [password.encode()]
        with self._connection() as connection:
            connection.add_s(dn, ldap.modlist.addModlist(entry))

    @contextmanager
    def _connection(self) -> Iterator["ldap.ldapobject.LDAPObject"]:
        connection = ldap.initialize(self.url)
        connection.simple_bind_s(MANAGER, PASSWORD)
        try:
            yield connection
        finally:
            connection.unbind_s()


@contextmanager
def private_directory(folder: Path, name: str = "localhost") -> Iterator[Directory]:
    """A directory without people, nodes and groups; its server ends with the context.

    `name`: for which its certificate is.
    """
    program = openldap_server()
    if program is None:
        pytest.fail("the tests need OpenLDAP's server: apt-get install slapd")
    (folder / "data").mkdir(parents=True)
    directory = Directory(folder, free_port(), free_port())
    names = {"folder": folder, "base": BASE, "manager": MANAGER, "reader": READER}
    settings = folder / "slapd.conf"
    settings.write_text(_SETTINGS.format(**names, password=PASSWORD))
    content = folder / "content.ldif"
    content.write_text(_CONTENT.format(**names, password=PASSWORD))
    make_certificates(folder, name)
    _run(program, "-T", "add", "-f", str(settings), "-l", str(content))
    addresses = f"ldap://127.0.0.1:{directory.port} ldaps://127.0.0.1:{directory.tls_port}"
    words = [str(program), "-f", str(settings), "-h", addresses, "-d", "stats"]
    with directory.log.open("wb") as log:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(server, directory)
        yield directory
    finally:
        stop(server)


def make_certificates(folder: Path, name: str) -> None:
    """An authority (`ca.pem`), and what it has signed for `name`."""
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    ca, key = str(folder / "ca.pem"), str(folder / "ca-key.pem")
    _openssl(*new, "-x509", "-days", "2", "-subj", "/CN=Tests", "-keyout", key, "-out", ca)
    request = str(folder / "request.pem")
    mine = ["-keyout", str(folder / "key.pem"), "-out", request]
    _openssl(*new, "-subj", f"/CN={name}", *mine)
    names = folder / "names"
    names.write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\n")
    words = ["-in", request, "-CA", ca, "-CAkey", key, "-CAcreateserial", "-days", "2"]
    words += ["-extfile", str(names), "-out", str(folder / "certificate.pem")]
    _openssl("x509", "-req", *words)


def _openssl(*words: str) -> None:
    _run(Path("openssl"), *words)


def _run(program: Path, *words: str) -> None:
    done = subprocess.run(
        [str(program), *words], capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    assert done.returncode == 0, f"{program.name}: {done.stdout}{done.stderr}"


def _wait(server: subprocess.Popen[bytes], directory: Directory) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", directory.tls_port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                text = directory.log.read_text()[-2000:]
                pytest.fail(f"slapd did not start:\n{text}")
            threading.Event().wait(0.05)  # it offers nothing to wait for but its port
