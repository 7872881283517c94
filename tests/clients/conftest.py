"""One instance with the echo engine for the whole tier, and who asks it."""

from collections.abc import Iterator

import httpx
import pytest

from tests.instance import Instance, running


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> (n1, n2), fifty slots a node, a hundred words a second each."""
    options = ["--engine", "echo", "--nodes", "2", "--slots", "50", "--token-delay", "0.01"]
    with running(tmp_path_factory.mktemp("service"), *options) as instance:
        yield instance


@pytest.fixture(scope="package")
def key(service: Instance) -> str:
    """An API key of the administrator."""
    return service.key()


@pytest.fixture(scope="package")
def staff(service: Instance) -> Iterator[httpx.Client]:
    """The administrator's session without a browser, logged in by the link that `up` printed."""
    with service.session(service.token) as client:
        yield client


@pytest.fixture(scope="package")
def program(service: Instance, key: str) -> Iterator[httpx.Client]:
    """A program with an API key."""
    with service.program(key) as client:
        yield client
