"""Frees the names of exclusive queues that a full disk left behind in the private broker.

RabbitMQ 4 makes a file for every queue. If the disk has no room for it, the queue's process dies,
but its name stays taken after its connection is gone, until the broker restarts: a node of that
name could not register ("node already registered"), and no operation of a client, not even an
administrator's, removes it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cli.rabbitmq import PrivateBroker

PAUSE_SECONDS = 30.0  # a look takes the broker 20 ms
_LOOK_SECONDS = 10.0

# RabbitMQ 3 deletes by the queue's name, RabbitMQ 4 by its record.
REMOVE = """
[try rabbit_amqqueue:internal_delete(Queue, <<"canopy">>)
 catch error:function_clause ->
     rabbit_amqqueue:internal_delete(amqqueue:get_name(Queue), <<"canopy">>)
 end
 || Queue <- rabbit_amqqueue:list(<<"/">>),
    Owner <- [amqqueue:get_exclusive_owner(Queue)],
    is_pid(Owner), node(Owner) =:= node(), not is_process_alive(Owner)].
"""


@contextlib.asynccontextmanager
async def removed(broker: PrivateBroker | None) -> AsyncIterator[None]:
    """Looks for them now and then while the block runs; not in a broker that is not ours."""
    if broker is None:
        yield
        return
    removing = asyncio.create_task(_remove_for_ever(broker), name="lost queues")
    try:
        yield
    finally:
        removing.cancel()
        await asyncio.gather(removing, return_exceptions=True)


async def _remove_for_ever(broker: PrivateBroker) -> None:
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        await broker.evaluate(REMOVE, _LOOK_SECONDS)
