"""What the endpoints of nodes take and give."""

from typing import Annotated

from ninja import Schema
from pydantic import StringConstraints

from api.http.parsing import Body
from broker.tree_actions import Action
from topology.names import NODE_NAME

NodeName = Annotated[str, StringConstraints(pattern=rf"^{NODE_NAME}$")]


class ActionQuery(Schema):
    """An action that is only looked at. `parent`: where to move; `whole`: with all nodes below."""

    action: Action
    parent: NodeName | None = None
    whole: bool = False


class ActionBody(Body):
    """An action that is to happen; see ActionQuery."""

    action: Action
    parent: NodeName | None = None
    whole: bool = False


class EffectAnswer(Schema):
    """What an action does; see broker.tree_actions.Effect. `text`: the same in English."""

    action: Action
    node: str
    parent: str | None
    nodes: list[str]
    children: list[str]
    slots: int
    all_slots: int
    running: int
    held: int
    waiting: int
    gone: bool
    text: str


class NodeOutcome(Schema):
    """`done`: it has happened, after so many seconds; else it goes on (status 202)."""

    done: bool
    seconds: float
    effect: EffectAnswer
