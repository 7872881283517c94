"""What the endpoints of hosts take and give."""

from typing import Annotated, Any

import msgspec
from ninja import Schema
from pydantic import Field, StringConstraints

from api.http.parsing import Body, Integer, StorableText
from api.operate.nodes.schemas import NodeName
from broker.host_messages import HostState

ModelName = Annotated[StorableText, StringConstraints(min_length=1, max_length=255)]


class HostList(Schema):
    """Every host with an agent, as broker.host_messages.HostState without the results."""

    hosts: list[dict[str, Any]]


class StartBody(Body):
    """A node to be started. Without a parent it hangs where it fits; `slots` null: automatic."""

    model: ModelName
    name: NodeName | None = None
    parent: NodeName | None = None
    slots: Annotated[Integer, Field(ge=1, le=1000)] | None = None
    device: Annotated[str, StringConstraints(pattern=r"^(|auto|cpu|cuda:[0-9]{1,3})$")] = ""


class Started(Schema):
    """The node that the host is about to start, and below which one."""

    host: str
    node: str
    parent: str | None


def host(state: HostState) -> dict[str, Any]:
    """The host as the API shows it."""
    fields: dict[str, Any] = msgspec.to_builtins(state)
    del fields["results"], fields["leaving"]
    return fields
