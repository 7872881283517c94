"""The proxies of docs/proxy, as written there, with a certificate and a port of the tests' own."""

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cli.home import REPOSITORY
from cli.prepare import system
from tests.instance import finish, start

EXAMPLES = REPOSITORY / "docs" / "proxy"
NAME = "localhost"
START_SECONDS = 60.0
_NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""
_CADDY = "{{\n admin off\n auto_https disable_redirects\n}}\n{site}"


class Certificate:
    """A self-signed one for NAME."""

    def __init__(self, folder: Path) -> None:
        self.file, self.key = folder / "certificate.pem", folder / "key.pem"
        words = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-x509"]
        words += ["-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        words += ["-keyout", str(self.key), "-out", str(self.file)]
        subprocess.run(["openssl", "req", *words], check=True, capture_output=True, timeout=30)

    def context(self) -> ssl.SSLContext:
        """For a client that trusts it."""
        return ssl.create_default_context(cafile=str(self.file))


@contextmanager
def nginx(
    certificate: Certificate, port: int, upstream: int, path: str = "", *, takes_off: bool = False
) -> Iterator[None]:
    """docs/proxy/nginx.conf before `upstream`, below `path`, which it `takes_off` or passes on."""
    program = system.nginx()
    if program is None:
        pytest.fail(f"this test needs nginx; run: {system.remedy(['nginx-light'])}")
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/chat.example.org.crt": str(certificate.file),
        "/etc/ssl/private/chat.example.org.key": str(certificate.key),
        "server_name chat.example.org": f"server_name {NAME}",
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "location / {": f"location {path}/ {{",
    }
    if takes_off:
        changes["proxy_pass http://canopy;"] = "proxy_pass http://canopy/;"
    site = _changed(EXAMPLES / "nginx.conf", changes)
    with TemporaryDirectory(prefix="canopy-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, site=site))
        command = [program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        with _running(command, port):
            yield


@contextmanager
def caddy(certificate: Certificate, port: int, upstream: int, path: str = "") -> Iterator[None]:
    """docs/proxy/Caddyfile before `upstream`, below `path`."""
    program = shutil.which("caddy")
    if program is None:
        pytest.fail(f"this test needs Caddy; run: {system.remedy(['caddy'])}")
    tls = f"    bind 127.0.0.1\n    tls {certificate.file} {certificate.key}\n"
    changes = {
        "chat.example.org {\n": f"https://{NAME}:{port} {{\n{tls}",
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "handle {": f"@canopy path {path} {path}/*\nhandle @canopy {{" if path else "handle {",
    }
    site = _changed(EXAMPLES / "Caddyfile", changes)
    with TemporaryDirectory(prefix="canopy-caddy-") as name:
        file = Path(name) / "Caddyfile"
        file.write_text(_CADDY.format(site=site))
        command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
        with _running(command, port, HOME=name, XDG_DATA_HOME=name, XDG_CONFIG_HOME=name):
            yield


def _changed(example: Path, changes: Mapping[str, str]) -> str:
    """The example with these changes; each must be possible, so that the test follows the file."""
    lines = example.read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))
    for before, after in changes.items():
        assert text.count(before) == 1, f"{example.name} has no single {before!r}"
        text = text.replace(before, after)
    return text


@contextmanager
def _running(command: list[str], port: int, **env: str) -> Iterator[None]:
    process = start(command, {**os.environ, **env}, subprocess.DEVNULL)
    try:
        _wait(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, f"{command[0]} has ended: {process.returncode}"
        yield
    finally:
        finish(process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the proxy does not listen"
        time.sleep(0.05)
