"""A rolling restart: every process of an instance is replaced in turn while the others serve."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import httpx

from cli.control import Message
from cli.errors import CliError, StateError, UnreachableError
from cli.plan import Plan
from cli.supervisor import Supervisor

BROKER = "broker"
CONNECTED_SECONDS = 60.0
_POLL_SECONDS = 0.1


def order(plan: Plan, added: Sequence[str], with_broker: bool) -> list[str]:
    """The names of the processes in the order of their restarts.

    `added`: nodes that were started beside the plan's.

    The API comes first, since a newer API understands older nodes. Nodes go from the leaves up, so
    that a node hands its jobs to a parent that is not about to leave; standby roots before roots.
    """
    names = [spec.name for spec in plan.apis]
    names += reversed(added)
    names += [spec.name for spec in plan.nodes[::-1] + plan.roots[::-1]]
    if with_broker:
        names.append(BROKER)
    return names


async def answer(
    request: Message, supervisor: Supervisor, plan: Plan, url: str
) -> AsyncGenerator[Message]:
    """Answers a `restart` command: `begin` and `replaced` per process, then `done` or `failed`.

    `url`: the API's.
    """
    started = time.monotonic()
    names = _present(plan, supervisor, bool(request.get("with_broker")))
    grace = float(request.get("grace", 0))
    try:
        with supervisor.replacing():
            if BROKER in names and not supervisor.has(BROKER):
                raise StateError(
                    "The broker is not ours (CANOPY_AMQP_URL): restart it where it runs."
                )
            for name in names:
                began = time.monotonic()
                old = supervisor.pid(name)
                yield {"event": "begin", "name": name, "pid": old}
                await _replace(name, supervisor, plan, grace, url)
                new, seconds = supervisor.pid(name), _seconds_since(began)
                yield {
                    "event": "replaced",
                    "name": name,
                    "old": old,
                    "new": new,
                    "seconds": seconds,
                }
    except CliError as error:
        yield {"event": "failed", "error": str(error)}
    else:
        yield {"event": "done", "processes": len(names), "seconds": _seconds_since(started)}


def _present(plan: Plan, supervisor: Supervisor, with_broker: bool) -> list[str]:
    """The order, without nodes that an operator removed."""
    planned = {spec.name for spec in plan.nodes + plan.roots}
    added = []
    for name in supervisor.names("nodes") + supervisor.names("roots"):
        if name not in planned:
            added.append(name)
    names = order(plan, added, with_broker)
    return [name for name in names if name == BROKER or supervisor.has(name)]


async def _replace(name: str, supervisor: Supervisor, plan: Plan, grace: float, url: str) -> None:
    if any(spec.name == name for spec in plan.apis):
        await supervisor.hand_over(name, grace)
        return
    await supervisor.replace(name)
    if name == BROKER:
        await _until_connected(url)


async def _until_connected(url: str) -> None:
    """Returns when the API is ready again. Raises UnreachableError."""
    try:
        async with (
            asyncio.timeout(CONNECTED_SECONDS),
            httpx.AsyncClient(base_url=url, trust_env=False) as http,
        ):
            while not await _is_ready(http):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise UnreachableError(
            f"The API is not ready {CONNECTED_SECONDS:.0f} s after the broker's restart."
        ) from error


async def _is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).is_success
    except httpx.HTTPError:
        return False


def _seconds_since(moment: float) -> float:
    return round(time.monotonic() - moment, 2)
