"""What a command learns of the tree where the broker does not answer."""

import asyncio

import pytest

from broker import snapshot
from broker.errors import ManagementError
from cli import registry

NOBODY = "127.0.0.1:1"


async def test_without_a_broker_the_problem_is_one_line() -> None:
    amqp_url, management_url = f"amqp://a:b@{NOBODY}/%2F", f"http://a:b@{NOBODY}"
    (problem,) = await registry.problems(amqp_url, management_url)
    assert problem.startswith("the tree cannot be read: ")
    assert NOBODY in problem
    assert await registry.problems(amqp_url, None) == []


async def test_a_session_does_not_outlive_a_failed_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Session:
        async def close(self) -> None:
            closed.append("session")

    async def opened(_url: str, _name: str) -> Session:
        return Session()

    async def refused(_url: str) -> None:
        for _ in range(3):  # the session is open by now
            await asyncio.sleep(0)
        raise ManagementError("refused")

    monkeypatch.setattr(snapshot.AmqpSession, "open", opened)
    monkeypatch.setattr(snapshot, "edges", refused)
    with pytest.raises(ManagementError, match="refused"):
        await snapshot.take_snapshot("amqp://", "http://")
    assert closed == ["session"]
