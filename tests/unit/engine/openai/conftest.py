"""Fixtures of the openai engine's tests."""

import pytest

from worker.engines.openai import engine as openai
from worker.engines.openai import http


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANOPY_UPSTREAM", "CANOPY_UPSTREAM_MODEL", "CANOPY_UPSTREAM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for long."""
    monkeypatch.setattr(openai, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(openai, "FAULT_SECONDS", 0.1)
    monkeypatch.setattr(openai, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(openai, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(openai, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(openai, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(openai, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(http, "FIRST_SECONDS", 0.2)
