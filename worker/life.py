"""A node's life: connect, register, start the engine, serve until it must leave; reconnect."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from broker.errors import BrokerError, ConnectionLost, NoParent, NotAdmitted
from broker.joined_port import make_port
from broker.presence import until_gone
from broker.session import Session
from broker.wire import Leave
from worker.errors import EngineStuck, WrongModel
from worker.node import Node

HEARTBEAT_SECONDS = 2.0  # between repeats of counters and state, which repair what was lost
GRACE_SECONDS = 3.0  # for running jobs to end when the node leaves
MOVE_SECONDS = 2.0  # for its queue to flow back to the parent then
RECONNECT_SECONDS = (0.2, 5.0)  # first and longest pause, jittered
ADMISSION_SECONDS = 2.0  # a parent of a former release does not answer before the node serves
PARENT_SECONDS = 1.0  # longest pause while only the parent is missing

Connect = Callable[[], Awaitable[Session]]
log = structlog.get_logger()


async def live(
    node: Node, connect: Connect, leave: asyncio.Event, *, wait: float = 0.0, standby: bool = False
) -> None:
    """Runs `node` until `leave` is set.

    `wait`: seconds to try to reach the broker and the parent at the start. `standby`: waits while
    the name is taken. Raises NameTaken, NoParent, NotAdmitted, WrongModel, ConnectionLost or
    AccessRefused if the node cannot register, EngineUnavailable if the engine cannot start,
    EngineStuck if it hangs and only a new process helps. A node that has served reconnects for
    ever: only `leave`, which an operator may also have set (`node.departure`), NotAdmitted and
    EngineStuck end it.
    """
    node.departure.add_done_callback(lambda _: leave.set())
    give_up = asyncio.get_running_loop().time() + wait
    pause, longest = RECONNECT_SECONDS
    served = False
    # loading takes seconds: meanwhile the node registers
    loading = asyncio.create_task(_load(node, wait), name="engine")
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
            except BrokerError as error:
                if node.status == "idle":  # it had served, so the back-off starts anew
                    served, pause, node.status = True, RECONNECT_SECONDS[0], "starting"
                late = not served and asyncio.get_running_loop().time() >= give_up
                if late or isinstance(error, NotAdmitted):
                    raise
                if isinstance(error, NoParent):  # it is likely to register soon
                    pause = min(pause, PARENT_SECONDS)
                log.warning("not registered, trying again", node=node.name, reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                    await leave.wait()
            pause = min(longest, pause * 2)
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await node.supervisor.stop()


async def _load(node: Node, wait: float) -> None:
    """Starts the engine.

    A node that joins an existing tree is admitted first, as a model takes long to load. (`up`
    starts all nodes together, with `wait`, and gives them the same model.)
    """
    if not wait:
        await _admission(node)
    if not node.refused.done():
        await node.supervisor.start()


async def _admission(node: Node) -> None:
    """Returns when the parent has admitted or refused the node, or has not answered in time."""
    if node.parent is None or node.served:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ADMISSION_SECONDS):
            await node.answered.wait()


async def _wait_for_name(node: Node, session: Session, leave: asyncio.Event) -> bool:
    """True once the name is free, False when the standby must leave. Raises ConnectionLost."""

    def stand_by() -> None:
        log.info("standby", node=node.name)

    free = asyncio.create_task(until_gone(session, node.name, stand_by), name="standby")
    leaving = asyncio.create_task(leave.wait(), name="leave")
    try:
        await _first(session, free, leaving)
        return not leave.is_set()
    finally:
        for task in (free, leaving):
            task.cancel()
        await asyncio.gather(free, leaving, return_exceptions=True)


async def _serve(
    node: Node, session: Session, leave: asyncio.Event, loading: asyncio.Task[None]
) -> None:
    """One session: register, serve and leave. Raises why the session was lost."""
    port = make_port(session, node.name, node, node.engine_name)
    node.link.open(port)
    await port.register(node.parent, node.model)
    node.announcer.begin()
    heartbeat = asyncio.create_task(_heartbeat(node), name="heartbeat")
    leaving = asyncio.create_task(leave.wait(), name="leave")
    try:
        await _first(session, heartbeat, loading, leaving, node.refused)
        await _admission(node)
        if node.refused.done():
            await port.remove(node.name)
            raise WrongModel(node.refused.result())
        if not leave.is_set():
            await _begin(node, loading)
            await _first(session, heartbeat, leaving, node.supervisor.stuck)
    finally:
        for task in (heartbeat, leaving):
            task.cancel()
        await asyncio.gather(heartbeat, leaving, return_exceptions=True)
    await _leave(node)
    if node.supervisor.stuck.done():
        raise EngineStuck(node.supervisor.detail)


async def _begin(node: Node, loading: asyncio.Task[None]) -> None:
    """Takes jobs, once the engine has started. If it has not, unregisters and raises why."""
    try:
        loading.result()
    except BaseException:
        await node.link.port.remove(node.name)
        raise
    node.status, node.served = "idle", True
    await node.link.port.consume(node.name, prefetch=node.dispatcher.prefetch())
    node.announcer.send_all()
    log.info(
        "ready", node=node.name, parent=node.parent, model=node.model, slots=node.dispatcher.slots
    )


async def _first(
    session: Session, lasting: asyncio.Task[None], *others: asyncio.Future[Any]
) -> None:
    """Returns when one of the futures is done.

    Raises ConnectionLost if the session ends first, or what `lasting` raised.
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
        node.announcer.send_all()
        await node.membership.heartbeat()


async def _leave(node: Node) -> None:
    """Gives up the registration: takes no new jobs, hands the children to the parent, lets running
    jobs end, empties the queue upward; then exchange, queue and presence go.

    A root keeps its queue, in which jobs wait for the next root. The edge stays as long as the
    queue does: should the node die while it leaves, the edge says who is to empty the queue.
    """
    log.info("leaving", node=node.name, running=node.dispatcher.running)
    node.membership.hand_children_to_parent(for_good=node.leaves_for_good)
    node.leave()
    await _until(lambda: node.dispatcher.running == 0, node, GRACE_SECONDS)
    node.jobs.interrupt_all("the node is leaving", fault=False)
    await _until(lambda: node.dispatcher.running == 0, node, GRACE_SECONDS)
    if node.parent is None:
        # jobs whose way down is not confirmed would be delivered to the next root, too
        await node.link.port.stop_consuming(node.name)
        await _until(lambda: not node.jobs.handing_on, node, GRACE_SECONDS)
    else:
        await node.membership.transfer_adopted()
        await _flow_up(node)
        await node.link.port.send_control(node.parent, Leave(node=node.name))
    node.status = "stopped"
    node.announcer.send_all()


async def _flow_up(node: Node) -> None:
    """Waits until the queue has been emptied into the parent's, and removes it.

    Jobs that cannot flow in time stay, for the node that adopts the queue or for the next start.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MOVE_SECONDS):
            while node.jobs.busy or not await node.link.port.remove(node.name):
                node.jobs.settlement.settled.clear()
                await node.jobs.settlement.settled.wait()


async def _until(condition: Callable[[], bool], node: Node, seconds: float) -> None:
    """Waits at most `seconds` for `condition`, checked whenever a job leaves the node."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                node.jobs.settlement.settled.clear()
                await node.jobs.settlement.settled.wait()
