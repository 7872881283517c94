"""Which messages came around the rights of their sender."""

from broker.routing import Bound
from topology import names


def test_only_keys_that_a_queue_is_bound_with_are_expected() -> None:
    bound = Bound()
    bound.add("q", names.EVENTS_EXCHANGE, "node.*")
    assert bound.expects("q", names.EVENTS_EXCHANGE, "node.n1")
    assert not bound.expects("q", names.EVENTS_EXCHANGE, "setting.models")
    assert not bound.expects("q", names.EVENTS_EXCHANGE, "node.n1.x")
    assert bound.expects("q", names.JOINED_EXCHANGE, "anything")  # not bound by this session
    bound.add("q", names.EVENTS_EXCHANGE, "setting.*")
    assert bound.expects("q", names.EVENTS_EXCHANGE, "setting.models")
    bound.remove("q", names.EVENTS_EXCHANGE, "setting.*")
    assert not bound.expects("q", names.EVENTS_EXCHANGE, "setting.models")
