"""A second machine whose link to the first is cut: the program of `test_link.py`.

It runs in network namespaces of its own (`unshare --map-root-user --net`), with broker, root and n1
in the first, n2 in the second, and a pair of virtual interfaces between them. It prints JSON.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from broker.client import Client
from cli.rabbitmq import Broker
from tests.faults.ledger import Ledger
from tests.listening import forwarding, listening
from tests.realbroker import NodeProcess, Server, private_server, stop
from tests.tunnel import pages

NEAR, FAR = "10.77.0.1", "10.77.0.2"
JOBS = 8
TOKENS = 500
TOKEN_DELAY = 0.05
_ENGINE = ("--model", "echo", "--engine", "echo", "--token-delay", str(TOKEN_DELAY))
_NODE = ("--parent", "root", *_ENGINE, "--slots", str(JOBS), "--wait", "60")


def run(*words: str) -> None:
    """A command to its end."""
    subprocess.run(words, check=True)


class Link:
    """The second machine's network. `within`: the command that starts a program there."""

    def __init__(self, pid: int) -> None:
        self.within = ("nsenter", f"--net=/proc/{pid}/ns/net")

    def cut(self) -> None:
        """Nothing arrives any more, in either direction, and nobody is told."""
        run(*self.within, "ip", "link", "set", "far", "down")

    def mend(self) -> None:
        """Packets arrive again."""
        run(*self.within, "ip", "link", "set", "far", "up")


@contextlib.contextmanager
def second_machine() -> Iterator[Link]:
    """A network namespace that has a link to this one."""
    run("ip", "link", "set", "lo", "up")
    holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    try:
        link = Link(holder.pid)
        run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        while True:  # until it has its namespace
            own = Path("/proc/self/ns/net").readlink()
            if Path(f"/proc/{holder.pid}/ns/net").readlink() != own:
                break
        run("ip", "link", "set", "far", "netns", str(holder.pid))
        run("ip", "addr", "add", f"{NEAR}/24", "dev", "near")
        run("ip", "link", "set", "near", "up")
        run(*link.within, "ip", "addr", "add", f"{FAR}/24", "dev", "far")
        run(*link.within, "ip", "link", "set", "lo", "up")
        link.mend()
        yield link
    finally:
        holder.kill()
        holder.wait()


async def observe(server: Server, link: Link, way: str) -> dict[str, object]:
    """Cuts the link in mid-stream and mends it. `way`: of n2, "tls" or "tunnel"."""
    broker = server.address
    client = Client(broker.amqp["api"])
    await client.start()
    try:
        with (
            NodeProcess(broker, "root", "--model", "echo", "--engine", "none", "--wait", "60"),
            NodeProcess(broker, "n1", *_NODE),
        ):
            async with _far_address(server, way) as url:
                far = Broker({**broker.amqp, "node": url}, {})
                n2 = NodeProcess(far, "n2", *_NODE, within=link.within)
                try:
                    await asyncio.to_thread(n2.wait_ready)
                    return await _cut_and_mend(client, link, n2)
                finally:
                    await asyncio.to_thread(stop, n2.process)
    finally:
        await client.stop()


@contextlib.asynccontextmanager
async def _far_address(server: Server, way: str) -> AsyncIterator[str]:
    """Where n2 finds the broker. A tunnel leads through a proxy, as with a web server before it."""
    if way == "tls":
        yield server.urls("node")[0]
        return
    async with pages(server.address, "n2") as url:
        parts = urlsplit(url)
        async with listening(forwarding(parts.hostname, parts.port), NEAR) as port:
            yield url.replace(f"@{parts.hostname}:{parts.port}", f"@{NEAR}:{port}")


async def _cut_and_mend(client: Client, link: Link, n2: NodeProcess) -> dict[str, object]:
    ledger = Ledger(client, "link cut", "n2")
    async with asyncio.timeout(60):
        while len(client.nodes()) < 3:
            await client.changed()
    await ledger.submit(JOBS, tokens=TOKENS)
    await ledger.until(lambda: len(ledger.running()) == JOBS and bool(ledger.on("n2")))
    struck = ledger.on("n2")
    cut = time.monotonic()
    link.cut()
    heard = {each.number: len(each.heard) for each in struck}
    await ledger.until(lambda: all(len(each.nodes) > 1 for each in struck))
    await ledger.until(lambda: all(len(each.heard) > heard[each.number] for each in struck))
    again = n2.said(" ready ")
    again.clear()
    link.mend()
    mended = time.monotonic()
    back = await asyncio.to_thread(again.wait, 60)
    rejoined = time.monotonic() - mended
    faults = await ledger.settled()
    pauses = [each.silence(cut) for each in struck]
    return {
        "streams": len(struck),
        "pause": round(max(pauses), 2),
        "rejoined": round(rejoined, 2) if back else None,
        "faults": faults,
    }


def main(folder: Path, way: str) -> None:
    """Prints what became of the streams."""
    with second_machine() as link, private_server(folder, NEAR) as server:
        print(json.dumps(asyncio.run(observe(server, link, way))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
