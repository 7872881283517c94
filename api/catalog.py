"""Which models there are, and which nodes serve them."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from api.environment import Environment
from api.errors import ApiError
from broker.client import Client
from broker.errors import ManagementError
from broker.management import Edges, edges
from broker.wire import NodeState

log = structlog.get_logger("canopy.api")

FRESH_SECONDS = 3.0  # after which the bindings are read again
FIRST_READ_SECONDS = 2.0  # that the first request waits for them
_LIVE = ("idle", "busy")


@dataclass(frozen=True, slots=True)
class Supply:
    """What the live nodes offer for one model."""

    model: str
    nodes: int
    slots: int
    free: int


class Catalog:
    """The models: those with a tree or a live node, and those that `up` names.

    Trees are read from the broker's bindings and cached for FRESH_SECONDS.
    """

    def __init__(self, client: Client, env: Environment) -> None:
        self._client = client
        self._env = env
        self._edges: Edges | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def models(self) -> list[str]:
        """Every model, the default first."""
        await self._refresh()
        bound = set(self._edges.roots.values()) if self._edges else set()
        serving = {state.model for state in self._client.nodes().values() if is_serving(state)}
        return list(dict.fromkeys([*self._env.models, *sorted(bound | serving)]))

    async def default(self) -> str | None:
        """The model for requests that name none."""
        return self._env.default_model or next(iter(await self.models()), None)

    async def default_or_503(self) -> str:
        """The same; raises ApiError 503 if there is no model at all."""
        model = await self.default()
        if model is None:
            raise ApiError(503, "no model is served yet", code="no_model")
        return model

    def supply(self, model: str) -> Supply:
        """What the live nodes offer for `model` at this moment."""
        return offered(model, self._client.nodes().values())

    def nobody_serves(self, model: str) -> str | None:
        """Why a job for `model` must wait now; None if a node serves it."""
        return None if self.supply(model).nodes else f"no node is serving {model} yet"

    def context_lengths(self) -> dict[str, int]:
        """Each model's context in tokens: its live nodes' smallest. Unknown ones are omitted."""
        lengths: dict[str, int] = {}
        for state in self._client.nodes().values():
            if is_serving(state) and state.context_length > 0:
                smallest = lengths.get(state.model, state.context_length)
                lengths[state.model] = min(smallest, state.context_length)
        return lengths

    async def _refresh(self) -> None:
        """Reads the bindings again when they are old: in the background, except the first time."""
        if not self._env.management_url or time.monotonic() - self._read_at < FRESH_SECONDS:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="catalog")
        if self._edges is None:
            await asyncio.wait({self._reading}, timeout=FIRST_READ_SECONDS)

    async def _read(self) -> None:
        try:
            self._edges = await edges(self._env.management_url)
        except ManagementError as error:
            log.warning("bindings not readable", reason=str(error))
        self._read_at = time.monotonic()


def is_serving(state: NodeState) -> bool:
    """True for a node that runs jobs now; a root has no engine."""
    return state.engine != "none" and state.status in _LIVE


def offered(model: str, states: Iterable[NodeState]) -> Supply:
    """What nodes in these states offer for `model`."""
    nodes = slots = free = 0
    for state in states:
        if state.model == model and is_serving(state):
            nodes += 1
            slots += state.slots
            free += state.slots - min(state.running, state.slots)
    return Supply(model=model, nodes=nodes, slots=slots, free=free)
