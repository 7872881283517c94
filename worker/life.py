"""A node's life: connect, register, start the engine, serve until told to leave; reconnect when the broker is back."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from broker.errors import BrokerError, ConnectionLost, NameTaken, NoParent
from broker.node import NodePort
from broker.presence import until_gone
from broker.session import Session
from broker.wire import Leave
from topology import names
from worker.care import EngineStuck
from worker.node import Node

HEARTBEAT_SECONDS = (
    2.0  # counters and state are repeated this often, so that whatever was lost heals
)
GRACE_SECONDS = 3.0  # running jobs get this long when the node is told to leave
MOVE_SECONDS = 2.0  # and its queue this long to flow back to the parent
RECONNECT_SECONDS = (0.2, 5.0)  # first and longest pause; a random part of it is slept
ADMISSION_SECONDS = 2.0  # a parent of a former version does not answer before the node serves
PARENT_SECONDS = 1.0  # longest pause where only the parent is missing

Connect = Callable[[], Awaitable[Session]]
log = structlog.get_logger()


class Unwanted(Exception):
    """The parent refuses this node; the text says why and what to do."""


async def live(
    node: Node, connect: Connect, leave: asyncio.Event, *, wait: float = 0.0, standby: bool = False
) -> None:
    """Runs `node` until `leave` is set. `wait`: seconds to try for the broker and the parent at the start. `standby`:
    a name that is taken is waited for.

    Raises NameTaken, NoParent, Unwanted, ConnectionLost or AccessRefused if the node cannot register, the engine's
    EngineUnavailable if it cannot start, EngineStuck if it hangs so that only a new process helps. Once it has served,
    only `leave` and EngineStuck end it: it reconnects for ever.
    """
    give_up = asyncio.get_running_loop().time() + wait
    pause, longest = RECONNECT_SECONDS
    served = False
    loading = asyncio.create_task(
        _load(node, wait), name="engine"
    )  # takes seconds: meanwhile the node registers
    try:
        while not leave.is_set():
            try:
                session = await connect()
                try:
                    if standby and not await _wait_for_name(node, session, leave):
                        return
                    await _serve(node, session, leave, loading)
                finally:
                    await node.abandon()
                    await session.close()
            except (BrokerError, NameTaken, NoParent) as error:
                if node.status == "idle":  # it had served: what comes now is a new trouble
                    served, pause, node.status = True, RECONNECT_SECONDS[0], "starting"
                if not served and asyncio.get_running_loop().time() >= give_up:
                    raise
                if isinstance(
                    error, NoParent
                ):  # the broker is there, and the parent is likely to be on its way too
                    pause = min(pause, PARENT_SECONDS)
                log.warning("not registered, trying again", node=node.name, reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                    await leave.wait()
            pause = min(longest, pause * 2)
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await node.care.stop()


async def _load(node: Node, wait: float) -> None:
    """Starts the engine. One that joins a tree which is there learns first whether it is wanted: a model takes long to
    load. (`up` starts everything together, waits, and gives all of it the same model.)
    """
    if not wait:
        await _admission(node)
    if not node.refused.done():
        await node.care.start()


async def _admission(node: Node) -> None:
    """Returns when the parent has answered whether it takes the node, or soon all the same."""
    if node.parent is None or node.served:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ADMISSION_SECONDS):
            await node.admitted.wait()


async def _wait_for_name(node: Node, session: Session, leave: asyncio.Event) -> bool:
    """A standby's life: returns True once the name is free, False when it is told to leave. Raises ConnectionLost."""
    free = asyncio.create_task(until_gone(session, node.name), name="standby")
    leaving = asyncio.create_task(leave.wait(), name="leave")
    try:
        if await session.exists(names.inbox(node.name)):
            log.info("standby", node=node.name)
        await _first(session, free, leaving)
        return not leave.is_set()
    finally:
        for task in (free, leaving):
            task.cancel()
        await asyncio.gather(free, leaving, return_exceptions=True)


async def _serve(
    node: Node, session: Session, leave: asyncio.Event, loading: asyncio.Task[None]
) -> None:
    """One session: register, serve, and leave in order or raise the reason why the session was lost."""
    node.port = NodePort(session, node.name, node)
    await node.port.register(node.parent, node.model)
    node.announcer.begin()
    heartbeat = asyncio.create_task(_heartbeat(node), name="heartbeat")
    leaving = asyncio.create_task(leave.wait(), name="leave")
    try:
        await _first(session, heartbeat, loading, leaving, node.refused)
        await _admission(node)
        if node.refused.done():
            await node.port.remove(node.name)
            raise Unwanted(node.refused.result())
        if not leave.is_set():
            await _begin(node, loading)
            await _first(session, heartbeat, leaving, node.care.stuck)
    finally:
        for task in (heartbeat, leaving):
            task.cancel()
        await asyncio.gather(heartbeat, leaving, return_exceptions=True)
    await _leave(node)
    if node.care.stuck.done():
        raise EngineStuck(node.care.detail)


async def _begin(node: Node, loading: asyncio.Task[None]) -> None:
    """Takes jobs, now that the engine is there. Raises what kept it from starting; the registration is gone then."""
    try:
        loading.result()
    except BaseException:
        await node.port.remove(node.name)
        raise
    node.status, node.served = "idle", True
    await node.port.consume(node.name, prefetch=node.dispatcher.prefetch())
    node.announcer.tell_all()
    log.info(
        "ready", node=node.name, parent=node.parent, model=node.model, slots=node.dispatcher.slots
    )


async def _first(
    session: Session, lasting: asyncio.Task[None], *others: asyncio.Future[Any]
) -> None:
    """Returns when one of the futures is done. Raises ConnectionLost if the session ends first, or what failed in
    `lasting`.
    """
    awaited: list[asyncio.Future[Any]] = [session.closed, lasting, *others]
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    if session.closed.done():
        raise ConnectionLost(str(session.closed.result()))
    if lasting.done():
        lasting.result()


async def _heartbeat(node: Node) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        node.jobs.sweep()
        node.announcer.tell_all()
        await node.membership.heartbeat()


async def _leave(node: Node) -> None:
    """Gives up the registration: no new jobs, the children to the parent, the running jobs to their end, the queue
    upward; then exchange, queue and presence go. A root keeps its queue: jobs wait there for the next root.

    The edge stays as long as the queue does: it tells whose the queue is, should the node die while it leaves.
    """
    log.info("leaving", node=node.name, running=node.dispatcher.running)
    node.membership.hand_children_to_parent()
    node.leave()
    await _until(lambda: node.dispatcher.running == 0, node, GRACE_SECONDS)
    node.jobs.interrupt_all("the node is leaving", fault=False)
    await _until(lambda: node.dispatcher.running == 0, node, GRACE_SECONDS)
    if (
        node.parent is None
    ):  # what is on its way down and not confirmed would be delivered to the next root, too
        await node.port.stop_consuming(node.name)
        await _until(lambda: not node.jobs.handing_over, node, GRACE_SECONDS)
    else:
        await node.membership.transfer()
        await _flow_up(node)
        await node.port.send_control(node.parent, Leave(node=node.name))
    node.status = "stopped"
    node.announcer.tell_all()


async def _flow_up(node: Node) -> None:
    """Waits until the queue has flowed to the parent and removes it. What cannot flow stays, for whoever looks after
    dead nodes' queues, or the next start.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MOVE_SECONDS):
            while node.jobs.busy or not await node.port.remove(node.name):
                node.jobs.settled.clear()
                await node.jobs.settled.wait()


async def _until(condition: Callable[[], bool], node: Node, seconds: float) -> None:
    """Waits for `condition`, looked at whenever a job leaves the node, for `seconds` at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                node.jobs.settled.clear()
                await node.jobs.settled.wait()
