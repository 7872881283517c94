"""Fixtures of the openai engine's tests."""

import pytest

from worker.engines.openai import engine as openai
from worker.engines.openai import http


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANOPY_UPSTREAM", "CANOPY_UPSTREAM_MODEL", "CANOPY_UPSTREAM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon; how long that goes on is as in the service."""
    monkeypatch.setattr(openai, "PAUSES", (0.01, 0.02))


@pytest.fixture
def hasty(short_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is given up soon. For tests that expect that: a busy machine may take longer."""
    monkeypatch.setattr(openai, "FAULT_SECONDS", 0.1)
    monkeypatch.setattr(openai, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(openai, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(openai, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(openai, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(openai, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(http, "FIRST_SECONDS", 0.2)
