"""Clients in Python, each in an environment of its own, with each model."""

from pathlib import Path

import pytest

from tests.clients import registry
from tests.clients.programs import Record, check_client, variables
from tests.clients.registry import Client
from tests.instance import Instance

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("models")]


@pytest.mark.parametrize(("client", "model"), registry.pairs(registry.PYTHON), ids=str)
def test_a_client_works_unchanged(
    service: Instance, key: str, client: Client, model: str, tmp_path: Path, record: Record
) -> None:
    check_client(client, model, variables(service, key, model, tmp_path), record)
