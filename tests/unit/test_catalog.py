"""Which models are offered, by what the broker's bindings say."""

from api.catalog import Catalog, live_roots
from api.environment import read
from broker.management import Edges
from tests.unit.api_site import FakeClient, node_state
from tests.unit.test_api_tree import overview_of

TWO_ROOTS = Edges(
    roots={"root": "tiny", "other-root": "other"},
    parents={},
    present=frozenset({"root", "other-root"}),
    registered=frozenset({"root", "other-root"}),
)
ONE_LEFT = Edges(
    roots=TWO_ROOTS.roots,
    parents={},
    present=frozenset({"root"}),
    registered=TWO_ROOTS.registered,
)


def test_a_root_that_left_offers_nothing() -> None:
    assert live_roots(TWO_ROOTS) == {"tiny", "other"}
    assert live_roots(ONE_LEFT) == {"tiny"}


async def test_a_model_without_a_live_root_or_node_is_not_listed() -> None:
    client = FakeClient()
    client.states = {"n1": node_state("n1", model="third")}
    environment = read({"CANOPY_MODELS": '["tiny"]', "CANOPY_MANAGEMENT_URL": "http://broker"})
    catalog = Catalog(client, environment)  # type: ignore[arg-type]
    client.reports.publish(overview_of(TWO_ROOTS))
    assert await catalog.models() == ["tiny", "other", "third"]
    client.reports.publish(overview_of(ONE_LEFT))
    assert await catalog.models() == ["tiny", "third"]
