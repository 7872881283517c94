"""A host downloads a model from a hub: how far it is, what does not fit, what breaks off."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from broker.host_messages import HostNode, StartNode
from cli.home import Home
from cli.host.allowed import Allowed
from cli.host.nodes import HostNodes
from cli.plan import NewNode
from cli.process import Spec
from cli.supervisor import Supervisor
from tests.hub import Hub, hub

pytestmark = pytest.mark.timeout(90)
MODEL = "acme/tiny"
SECONDS = 40.0
SERVES = """
import pathlib, signal, sys
assert (pathlib.Path(sys.argv[1]) / "model.safetensors").stat().st_size == 24_000_000
print("ready", flush=True)
signal.pause()
"""


class Host:
    """What an agent has below its broker; `changed` is set whenever it would tell its state."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.home.make()
        self.changed = asyncio.Event()
        self.supervisor = Supervisor(self.home, None, print)
        self.nodes = HostNodes(
            self.supervisor,
            self.home,
            self._spec,
            Allowed(models={MODEL: MODEL}, devices=(), max_nodes=2),
            needs_files=True,
            folders={},
            drills=False,
            on_change=self.changed.set,
        )

    def _spec(self, new: NewNode) -> Spec:
        command = [sys.executable, "-S", "-E", "-c", SERVES, str(new.folder)]
        return Spec(new.name, command, is_ready=lambda line: line == "ready")

    def start(self, node: str) -> None:
        """As operators ask for it."""
        self.nodes.obey(StartNode(number=node, node=node, model=MODEL, parent="root", device="cpu"))

    async def when(self, node: str, holds: Callable[[HostNode], bool]) -> HostNode:
        """The node, once that is true of it."""
        async with asyncio.timeout(SECONDS):
            while True:
                self.changed.clear()
                for each in self.nodes.nodes():
                    if each.name == node and holds(each):
                        return each
                await self.changed.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(24_000_000))
    with hub({MODEL: folder}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest_asyncio.fixture
async def host(tmp_path: Path, server: Hub) -> AsyncIterator[Host]:
    here = Host(tmp_path)
    yield here
    await here.nodes.close()
    await here.supervisor.stop()


async def test_a_download_is_watched_breaks_off_and_goes_on(host: Host, server: Hub) -> None:
    server.claimed = {"model.safetensors": 10**15}
    host.start("n1")
    refused = await host.when("n1", lambda node: node.state == "failed")
    assert "does not fit into the memory that is free" in refused.note
    assert "would fit" in refused.note
    assert server.sent == [], "it is told before anything is downloaded"

    server.claimed, server.broken = {}, True
    host.start("n2")
    broken = await host.when("n2", lambda node: node.state == "failed")
    assert "try again, which goes on where it broke off" in broken.note
    assert "\n" not in broken.note
    assert not any("Traceback" in line for line in broken.tail)

    server.broken = False
    server.go_on.clear()
    host.start("n2")
    await host.when("n2", lambda node: "10.5 MB of 24.0 MB" in node.note)
    server.go_on.set()
    await host.when("n2", lambda node: node.state == "running")
    (model,) = host.nodes.models()
    assert model.bytes == 24_000_000
