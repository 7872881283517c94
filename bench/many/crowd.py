"""Many nodes in one process: `python -m … MODEL SLOTS NAME=PARENT …`. Says when all serve."""

import asyncio
import os
import sys

import structlog

from broker.amqp import AmqpSession
from broker.session import Session
from topology.dispatch import DEFAULT_POLICY, POLICIES
from worker.engines import create
from worker.life import live
from worker.node import Node

READY = "all serve"
_WAIT_SECONDS = 120.0  # for the parents, which may be in other processes


async def crowd(model: str, slots: int, parents: dict[str, str]) -> None:
    """Runs the nodes until this is cancelled."""
    leave = asyncio.Event()
    nodes: list[Node] = []
    async with asyncio.TaskGroup() as group:
        for name, parent in parents.items():
            engine = create(
                "echo", model=model, model_path=None, device="cpu", slots=slots, token_delay=0.0
            )
            node = Node(name, parent, model, POLICIES[DEFAULT_POLICY](), engine)
            nodes.append(node)
            group.create_task(_live(node, leave), name=name)
        while any(node.status != "idle" for node in nodes):  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.1)
        print(READY, flush=True)


async def _live(node: Node, leave: asyncio.Event) -> None:
    async def connect() -> Session:
        return await AmqpSession.open(os.environ["CANOPY_AMQP_URL"], f"node {node.name}")

    await live(node, connect, leave, wait=_WAIT_SECONDS)


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    edges = dict(word.split("=", 1) for word in sys.argv[3:])
    asyncio.run(crowd(sys.argv[1], int(sys.argv[2]), edges))
