"""The in-memory twin keeps the session's contract."""

import pytest

from broker.memory import MemoryBroker
from broker.routing import matches
from broker.session import Session
from tests.session_contract import Open, SessionContract


class TestMemorySession(SessionContract):
    @pytest.fixture
    def connect(self) -> Open:
        broker = MemoryBroker()

        async def open_session() -> Session:
            return broker.session()

        return open_session


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("node.*", "node.n1", True),
        ("node.*", "node", False),
        ("node.*", "node.a.b", False),
        ("#", "", True),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c.z", True),
        ("a.#.z", "a.b", False),
    ],
)
def test_topics(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected
