"""Bare AMQP: its driver, which starts a process a hop. `python -m ... HOPS`."""

import asyncio
import os
import sys

from bench import bare
from bench.dispatch import loop
from bench.dispatch.peers.canopy_driver import job
from broker.wire import encode


async def main(hops: int) -> None:
    """Drives until standard input ends."""
    body = encode(job("bare"))  # as many bytes as Canopy sends; nobody reads them
    async with bare.running(os.environ["BENCH_AMQP_URL"], hops) as tree:
        await loop.serve(lambda: tree.round_trip(body), tree.pids)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
