"""Which models there are, and who serves them."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from api import broker
from api.errors import ApiError
from api.settings import ENV
from broker.management import Edges, ManagementError, edges
from broker.wire import NodeState

log = structlog.get_logger("canopy.api")

_FRESH = 3.0  # seconds
_LIVE = ("idle", "busy")


@dataclass(frozen=True, slots=True)
class Supply:
    """What the live nodes offer for one model."""

    model: str
    nodes: int
    slots: int
    free: int


class Catalog:
    """The trees' entrances, read from the broker's bindings and remembered for a few seconds."""

    def __init__(self) -> None:
        self._edges: Edges | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def models(self) -> list[str]:
        """Every model that has a tree, a live node, or was named at `up`; the default first."""
        await self._refresh()
        bound = set(self._edges.roots.values()) if self._edges else set()
        serving = {state.model for state in broker.client().nodes().values() if is_serving(state)}
        return list(dict.fromkeys([*ENV.models, *sorted(bound | serving)]))

    async def default(self) -> str | None:
        """The model for those who name none."""
        return ENV.default_model or next(iter(await self.models()), None)

    async def default_or_503(self) -> str:
        """The same; raises ApiError 503 if there is no model at all."""
        model = await self.default()
        if model is None:
            raise ApiError(503, "no model is served yet", code="no_model")
        return model

    async def _refresh(self) -> None:
        """Reads the bindings: at once the first time, in the background when what is known got old."""
        if not ENV.management_url or time.monotonic() - self._read_at < _FRESH:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="catalog")
        if self._edges is None:
            await asyncio.wait({self._reading}, timeout=2.0)

    async def _read(self) -> None:
        try:
            self._edges = await edges(ENV.management_url)
        except ManagementError as error:
            log.warning("bindings not readable", reason=str(error))
        self._read_at = time.monotonic()


catalog = Catalog()


def is_serving(state: NodeState) -> bool:
    """True for a node that runs jobs now; a root has no engine."""
    return state.engine != "none" and state.status in _LIVE


def supply(model: str) -> Supply:
    """What the live nodes offer for `model` at this moment."""
    return offered(model, broker.client().nodes().values())


def offered(model: str, states: Iterable[NodeState]) -> Supply:
    """What nodes of these states offer for `model`."""
    serving = [state for state in states if state.model == model and is_serving(state)]
    slots = sum(state.slots for state in serving)
    running = sum(min(state.running, state.slots) for state in serving)
    return Supply(model=model, nodes=len(serving), slots=slots, free=slots - running)


def context_lengths() -> dict[str, int]:
    """How many tokens of prompt and answer fit on any live node of a model, by model. Unknown ones are left out."""
    found: dict[str, int] = {}
    for state in broker.client().nodes().values():
        if is_serving(state) and state.context_length > 0:
            known = found.get(state.model, state.context_length)
            found[state.model] = min(known, state.context_length)
    return found


def nobody_serves(model: str) -> str | None:
    """Why a job for `model` must wait now; None if a node serves it."""
    return None if supply(model).nodes else f"no node is serving {model} yet"
