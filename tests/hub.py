"""As much of the Hugging Face hub's API as a download needs, over HTTP on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WAIT_SECONDS = 60.0


class Hub(ThreadingHTTPServer):
    """Serves the folders of `models`, by name.

    `claimed`: sizes that it tells in place of the true ones, by file. While `held` is set, weights
    stop half-way until it is cleared; while `broken` is set, their connection is cut there.
    """

    daemon_threads = True

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.claimed: dict[str, int] = {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.broken = False
        self.sent: list[str] = []  # files whose content was asked for

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(models: dict[str, Path]) -> Iterator[Hub]:
    """Runs one beside the test."""
    server = Hub(models)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests read what the product says."""

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), only_files="tree" in parts)
            return
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        folder = self.server.models.get(name)
        if folder is None or not (folder / file).is_file():
            self._absent("EntryNotFound")
            return
        self._file(folder / file, with_content=with_content)

    def _info(self, name: str, *, only_files: bool) -> None:
        folder = self.server.models.get(name)
        if folder is None:
            self._absent("RepoNotFound")
            return
        files = []
        for file in sorted(folder.iterdir()):
            size = self.server.claimed.get(file.name, file.stat().st_size)
            entry = {"type": "file", "path": file.name, "rfilename": file.name, "oid": COMMIT}
            files.append({**entry, "size": size})
        info = {"id": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []}
        body = json.dumps(files if only_files else info).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _absent(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, file: Path, *, with_content: bool) -> None:
        content = file.read_bytes()
        begin = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_content:
            return
        self.server.sent.append(file.name)
        middle = len(content)
        if file.suffix == ".safetensors":
            middle = max(begin, len(content) // 2)
        self.wfile.write(content[begin:middle])
        if self.server.broken and middle < len(content):
            self.close_connection = True
            return
        if not self.server.go_on.wait(WAIT_SECONDS):
            raise AssertionError("the test has not let the download go on")
        self.wfile.write(content[middle:])
