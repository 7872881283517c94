"""Nodes that reach the broker through a proxy: they can be cut off without touching anything else."""

import contextlib
import sys
from collections.abc import AsyncIterator

from bench.chaos.schedule import FAR
from bench.instance import Instance, NotStarted
from bench.proxy import Proxy
from cli import plan
from cli.process import Child, Spec


@contextlib.asynccontextmanager
async def nodes(
    canopy: Instance, slots: int, token_delay: float
) -> AsyncIterator[dict[str, Proxy]]:
    """Starts them, below their parents; ended with the block. Their logs lie beside the others'. Raises NotStarted."""
    async with contextlib.AsyncExitStack() as opened:
        proxies = {}
        for name, parent in FAR.items():
            broker = canopy.amqp("node")
            proxies[name] = await opened.enter_async_context(Proxy.before(broker))
            words = [
                "--name",
                name,
                "--parent",
                parent,
                "--model",
                canopy.model,
                "--engine",
                "echo",
            ]
            words += ["--slots", str(slots), "--token-delay", str(token_delay), "--wait", "30"]
            environment = {
                "CANOPY_AMQP_URL": proxies[name].through(broker),
                "CANOPY_HOME": str(canopy.home),
            }
            command = [sys.executable, "-m", "worker", *words]
            child = await Child.start(
                Spec(name, command, environment, is_ready=plan.is_ready_line), canopy.home / "logs"
            )
            opened.push_async_callback(child.stop, 5.0)
            if not await child.until_ready():
                raise NotStarted(f"{name}: {child.last_line()}")
        yield proxies
