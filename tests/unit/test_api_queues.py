"""The broker as operators see it."""

import httpx

from api.operate.queues.describe import describe, page_address
from broker.operator_messages import Binding, BrokerMember, BrokerOverview, QueueFigures
from tests.unit.api_site import FakeClient, node_state

OVERVIEW = BrokerOverview(
    process="api-2",
    version="3.13.7",
    cluster="rabbit@host",
    members=(BrokerMember(name="rabbit@host", memory=5, memory_limit=10),),
    queues=(
        QueueFigures(name="canopy.node.root", unacked=4, consumers=1),
        QueueFigures(name="canopy.node.n1", ready=2, head_age=3.0),
        QueueFigures(name="canopy.inbox.n1", exclusive=True),
        QueueFigures(name="canopy.dead", ready=1),
    ),
    bindings=(
        Binding(source="canopy.jobs", destination="canopy.node.root", key="tiny"),
        Binding(source="canopy.node.root", destination="canopy.node.n1", key="n1"),
        Binding(source="canopy.events", destination="canopy.watch.a", key="node.*"),
    ),
)


def test_queues_have_a_kind_an_owner_and_the_age_of_what_waits() -> None:
    states = {"root": node_state("root", held=4, oldest_wait=7.5), "n1": node_state("n1")}
    seen = describe(OVERVIEW, states, 1.0, "")
    assert [(queue.kind, queue.node, queue.oldest) for queue in seen.queues] == [
        ("node", "root", 7.5),
        ("node", "n1", 3.0),
        ("inbox", "n1", None),
        ("dead", None, None),
    ]
    assert [(edge.source, edge.key) for edge in seen.edges] == [
        ("canopy.jobs", "tiny"),
        ("canopy.node.root", "n1"),
    ]


def test_the_address_of_rabbitmqs_page_has_no_password() -> None:
    assert page_address("http://admin:secret@127.0.0.1:15672") == "http://127.0.0.1:15672/"
    assert page_address("") is None


async def test_staff_read_what_the_recorder_reported(
    staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.reports.publish(OVERVIEW)
    seen = (await staff.get("/api/operate/queues")).json()
    assert (seen["version"], seen["members"][0]["memory"]) == ("3.13.7", 5)
    assert seen["queues"][1]["ready"] == 2
