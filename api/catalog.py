"""Which models there are, and which nodes serve them."""

from api.environment import Environment
from api.errors import ApiError
from broker.client import Client
from broker.management import Edges
from broker.model_supply import ModelSupply, is_serving
from broker.node_state import NodeState
from broker.wire import Task

READ_WAIT_SECONDS = 2.0  # for the recorder's first report, in a process that has just started


class Catalog:
    """The models: those with a live root or a live node, and those that `up` names.

    The queue of a root that has left stays, and jobs may wait in it; its model is not offered.
    Roots are known from the broker's bindings, as the recorder and the broker's events tell them.
    """

    def __init__(self, client: Client, env: Environment) -> None:
        self._client = client
        self._env = env

    async def models(self) -> list[str]:
        """Every model, the default first."""
        if self._env.management_url:
            await self._client.reports.first(READ_WAIT_SECONDS)
        rooted = live_roots(self._client.edges.now())
        serving = {state.model for state in self._client.nodes().values() if is_serving(state)}
        return list(dict.fromkeys([*self._env.models, *sorted(rooted | serving)]))

    async def default(self) -> str | None:
        """The model for requests that name none."""
        for model in self._env.models or await self.models():
            if self.writes(model):
                return model
        return next(filter(self.writes, await self.models()), None)

    async def default_or_503(self) -> str:
        """The same; raises ApiError 503 if there is no model at all."""
        model = await self.default()
        if model is None:
            raise ApiError(503, "no model is served yet", code="no_model")
        return model

    def supply(self, model: str) -> ModelSupply:
        """What the live nodes offer for `model` at this moment."""
        return self._client.supply(model)

    def waiting(self, model: str) -> int:
        """How many jobs for `model` its nodes hold, the root among them."""
        return self._client.supply(model).held

    def nobody_serves(self, model: str) -> str | None:
        """Why a job for `model` must wait now; None if a node serves it."""
        return None if self.supply(model).nodes else f"no node is serving {model} yet"

    def tasks(self, model: str) -> frozenset[Task]:
        """What the model's live nodes do; empty while there are none."""
        return self._client.supply(model).tasks

    def writes(self, model: str) -> bool:
        """Whether the model writes answers, as far as is known."""
        tasks = self.tasks(model)
        return not tasks or "generate" in tasks

    def serving(self, model: str) -> list[NodeState]:
        """The states of the nodes that serve `model` now."""
        states = self._client.nodes().values()
        return [state for state in states if state.model == model and is_serving(state)]

    def context_lengths(self) -> dict[str, int]:
        """Each model's context in tokens: its live nodes' smallest. Unknown ones are omitted."""
        lengths: dict[str, int] = {}
        for state in self._client.nodes().values():
            if is_serving(state) and state.context_length > 0:
                smallest = lengths.get(state.model, state.context_length)
                lengths[state.model] = min(smallest, state.context_length)
        return lengths


def live_roots(edges: Edges) -> set[str]:
    """The models whose root is connected to the broker."""
    return {model for root, model in edges.roots.items() if root in edges.present}
