"""What the endpoints of models take and give."""

from dataclasses import asdict
from typing import Annotated

from ninja import Schema
from pydantic import Field, StringConstraints

from api.errors import ApiError
from api.http.parsing import Body, Integer, StorableText
from api.operate.hosts.schemas import ModelName, StartBody
from api.operate.models.store import Card
from api.operate.nodes.schemas import NodeName
from topology.autoscale import Rule

Tokens = Annotated[Integer, Field(ge=1, le=10_000_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
NodeCount = Annotated[Integer, Field(ge=0, le=1_000)]
Requests = Annotated[Integer, Field(ge=1, le=100_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Description = Annotated[StorableText, StringConstraints(max_length=500)]


class ServedNode(Schema):
    """A node of a model's tree. Amounts are bytes; 0: unknown.

    `precision`, `weights`, `cache` (keys and values): of its model; `memory`: of its process;
    `memory_free`: of its device, on a GPU what the nodes there leave.
    """

    name: str
    root: bool
    state: str
    host: str
    device: str
    engine: str
    slots: int
    running: int
    queued: int
    precision: str
    weights: int
    cache: int
    memory: int
    memory_total: int
    memory_free: int


class RuleAnswer(Schema):
    """An autoscaling rule."""

    least: int
    most: int
    target_wait: float
    cooldown: float


class ServedModel(Schema):
    """A model with its nodes, settings and rule. `loadable`: hosts that allow it."""

    model: str
    nodes: list[ServedNode]
    slots: int
    usable: int
    context: int | None
    description: str
    max_tokens: int | None
    most_tokens: int | None
    most_requests: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    autoscale: RuleAnswer | None
    loadable: list[str]


class ModelList(Schema):
    """Every model that is served, may be loaded, or has settings."""

    models: list[ServedModel]


class LoadBody(Body):
    """A model that a host allows; its first node. See StartBody."""

    host: NodeName
    model: ModelName
    slots: Annotated[Integer, Field(ge=1, le=1000)] | None = None
    device: Annotated[str, StringConstraints(pattern=r"^(|auto|cpu|cuda:[0-9]{1,3})$")] = ""

    def first_node(self) -> StartBody:
        """The node below the new root."""
        return StartBody(model=self.model, slots=self.slots, device=self.device)


class ModelBody(Body):
    """A model by its name, which may have slashes."""

    model: ModelName


class CardBody(Body):
    """A model's card, limits and defaults; null: none. See api.operate.models.models.

    The bounds of defaults are those of the OpenAI-compatible endpoints.
    """

    model: ModelName
    description: Description = ""
    max_tokens: Tokens | None = None
    most_tokens: Tokens | None = None
    most_requests: Requests | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None


class RuleBody(Body):
    """A rule of the autoscaler; see topology.autoscale.Rule."""

    model: ModelName
    least: NodeCount
    most: NodeCount
    target_wait: Seconds = 10.0
    cooldown: Annotated[float, Field(ge=5, le=86_400)] = 60.0


def card_of(body: CardBody) -> Card:
    """The settings that the body asks for."""
    return Card(**body.model_dump(exclude={"model"}))


def described(card: Card) -> str:
    """What a card sets, for the audit log."""
    settings = [
        f"{name}={value}" for name, value in asdict(card).items() if value not in (None, "")
    ]
    return ", ".join(settings) or "nothing is set"


def rule_of(body: RuleBody) -> Rule:
    """The rule that the body asks for. Raises ApiError 400."""
    if body.most < max(1, body.least):
        message = "most: must be at least 1, and not below least"
        raise ApiError(400, message, field="most", code="invalid_value")
    return Rule(
        least=body.least,
        most=body.most,
        target_wait=body.target_wait,
        cooldown=body.cooldown,
    )
