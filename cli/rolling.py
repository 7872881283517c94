"""A rolling restart: every process of a running instance is replaced, one after the other, while the others serve."""

import asyncio
import time
from collections.abc import AsyncGenerator

import httpx

from cli.control import Message
from cli.errors import CliError
from cli.plan import Plan
from cli.supervisor import Supervisor

BROKER = "broker"
CONNECTED_SECONDS = 60.0


def order(plan: Plan, with_broker: bool) -> list[str]:
    """The API first, as a newer one understands older nodes; then the nodes from the leaves up, so that what a node
    hands to its parent meets one that is not about to leave; standby roots before the roots; the broker last.
    """
    upwards = [spec.name for spec in (*reversed(plan.nodes), *reversed(plan.roots))]
    return [*(spec.name for spec in plan.apis), *upwards, *([BROKER] if with_broker else [])]


async def answer(
    asked: Message, children: Supervisor, plan: Plan, url: str
) -> AsyncGenerator[Message]:
    """What a `restart` command gets: `begin` and `replaced` for each process, then `done` or `failed`. `url`: where
    the API is.
    """
    started = time.monotonic()
    apis = [spec.name for spec in plan.apis]
    names = order(plan, bool(asked.get("with_broker")))
    try:
        with children.replacing():
            if not all(map(children.has, names)):
                raise CliError(
                    "The broker is not ours (CANOPY_AMQP_URL): restart it where it runs."
                )
            for name in names:
                old, began = children.pid(name), time.monotonic()
                yield {"event": "begin", "name": name, "pid": old}
                if name in apis:
                    await children.hand_over(name, float(asked.get("grace", 0)))
                else:
                    await children.replace(name)
                if name == BROKER:
                    await _until_connected(url)
                yield {
                    "event": "replaced",
                    "name": name,
                    "old": old,
                    "new": children.pid(name),
                    **_since(began),
                }
    except CliError as error:
        yield {"event": "failed", "error": str(error)}
    else:
        yield {"event": "done", "processes": len(names), **_since(started)}


async def _until_connected(url: str) -> None:
    """Returns when the API says that it is ready again. Raises CliError."""
    try:
        async with (
            asyncio.timeout(CONNECTED_SECONDS),
            httpx.AsyncClient(base_url=url, trust_env=False) as http,
        ):
            while not await _is_ready(http):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise CliError(
            f"The API is not ready {CONNECTED_SECONDS:.0f} s after the broker's restart."
        ) from error


async def _is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).is_success
    except httpx.HTTPError:
        return False


def _since(moment: float) -> Message:
    return {"seconds": round(time.monotonic() - moment, 2)}
