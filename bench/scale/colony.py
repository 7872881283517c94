"""`python -m bench.scale.colony`: several nodes in one process, each with a session of its own, as `python -m worker`.

They share the event loop and the memory of the program, nothing else. SIGTERM lets all of them leave in order.
"""

import asyncio
import os
import signal
import sys

import msgspec

from broker.amqp import AmqpSession
from broker.session import Session
from topology.dispatch import POLICIES
from worker.__main__ import configure_logs
from worker.engines import create
from worker.life import live
from worker.node import Node

_WAIT_SECONDS = 60.0


class Member(msgspec.Struct, frozen=True):
    """One node. Without slots it has no engine and only hands on."""

    name: str
    parent: str
    slots: int = 0


class Colony(msgspec.Struct, frozen=True):
    """What one process runs."""

    model: str
    policy: str
    members: list[Member]


async def run(colony: Colony, amqp_url: str) -> None:
    """Lives as all of them until SIGTERM or SIGINT. Raises what `worker.life.live` raises; then all end."""
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    async with asyncio.TaskGroup() as together:
        for member in colony.members:
            together.create_task(_live(colony, member, amqp_url, leave), name=member.name)


async def _live(colony: Colony, member: Member, amqp_url: str, leave: asyncio.Event) -> None:
    engine = None
    if member.slots:
        engine = create(
            "echo",
            model=colony.model,
            model_path=None,
            device="auto",
            slots=member.slots,
            token_delay=0.0,
        )
    node = Node(member.name, member.parent, colony.model, POLICIES[colony.policy](), engine)

    async def connect() -> Session:
        return await AmqpSession.open(amqp_url, f"node {member.name}")

    await live(node, connect, leave, wait=_WAIT_SECONDS)


if __name__ == "__main__":
    configure_logs()
    asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Colony), os.environ["CANOPY_AMQP_URL"]))
