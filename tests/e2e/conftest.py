"""One echo instance and one browser for the whole tier; each visitor has a context of its own.

The scope is the package: Playwright's event loop must have ended before other tiers run theirs.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import WAIT_MS, launched, log_in, watched
from tests.instance import Instance, end_jobs, running
from tests.realbroker import NodeProcess

OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> n1 -> (n2, n3), two slots a node, twenty words a second."""
    options = [
        "--engine",
        "echo",
        "--nodes",
        "3",
        "--fanout",
        "2",
        "--slots",
        "2",
        "--token-delay",
        "0.05",
    ]
    # without slots left to others, tests can fill every slot and know how many wait
    env = {"CANOPY_USER_JOBS": "0", "CANOPY_DRILLS": "1"}
    with running(tmp_path_factory.mktemp("echo"), *options, env=env) as instance:
        instance.add_people(operator=True, reader=False)
        yield instance


@pytest.fixture(scope="module")
def models(echo: Instance, staff: httpx.Client) -> Iterator[None]:
    """Two more trees: `quick` says everything at once, `steady` says a word every 4 ms."""
    delays = {"quick": "0", "steady": "0.004"}
    started = []
    for model, delay in delays.items():
        root, engine = f"{model}-root", ("--engine", "echo", "--token-delay", delay)
        started.append(NodeProcess(echo.broker, root, "--engine", "none", "--model", model))
        below = ("--parent", root, "--model", model, "--wait", "30", *engine)
        started.append(NodeProcess(echo.broker, f"{model}-1", *below))
    with ExitStack() as nodes:
        for process in started:
            nodes.push(process)
        for process in started:
            process.wait_ready()
        yield
        end_jobs(staff, delays)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="package")
def staff(echo: Instance) -> Iterator[httpx.Client]:
    """The administrator, beside the browser."""
    with echo.session(echo.login_token()) as client:
        yield client


@pytest.fixture(scope="package")
def program(echo: Instance) -> Iterator[httpx.Client]:
    """A program with an API key, beside the browser."""
    with echo.program(echo.key()) as client:
        yield client


@pytest.fixture(scope="package")
def cookies(chromium: Browser, echo: Instance) -> Callable[[str | None], Any]:
    """The stored login of a user, who logs in once with a password for all tests."""

    @cache
    def cookies_of(user: str | None) -> Any:
        with chromium.new_context(base_url=echo.url) as context:
            if user:
                log_in(context.new_page(), user)
            return context.storage_state()

    return cookies_of


@pytest.fixture
def open_page(
    chromium: Browser, echo: Instance, cookies: Callable[[str | None], Any]
) -> Iterator[OpenPage]:
    """Opens pages: `open_page("reader")` is logged in, `open_page(None)` is not.

    Errors on a page fail the test, unless they match `expected` (a pattern).
    """
    complaints: list[str] = []
    with ExitStack() as opened:

        def open_one(
            user: str | None = "reader", *, expected: str = "(?!)", **options: Any
        ) -> Page:
            options |= {"base_url": echo.url, "storage_state": cookies(user)}
            context = opened.enter_context(chromium.new_context(**options))
            context.set_default_timeout(WAIT_MS)
            page = context.new_page()
            watched(
                page, lambda text: None if re.search(expected, text) else complaints.append(text)
            )
            page.goto("/")
            return page

        yield open_one
    assert complaints == []
