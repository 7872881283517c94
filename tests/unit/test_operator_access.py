"""What is for operators is for operators alone: every address and every action, found by itself."""

import re
from collections.abc import Iterator

import httpx
import pytest

from api.accounts.auth import Administrator, Staff
from api.urls import endpoints
from tests.unit.api_site import FakeClient

OPERATORS = ("/api/tree", "/api/operate")

Operation = tuple[str, str, type[Staff]]


def operations() -> Iterator[tuple[str, str, list[object]]]:
    """Method, path and the checks of everything that the API answers."""
    for prefix, router in endpoints._routers:
        for path, view in router.path_operations.items():
            for operation in view.operations:
                checks = list(operation.auth_callbacks) or [router.auth]
                for method in operation.methods:
                    yield method, f"{prefix}{path}".rstrip("/"), checks


def for_operators() -> list[Operation]:
    """Those below OPERATORS, with what they check."""
    for_staff = []
    for method, path, checks in operations():
        if path.startswith(OPERATORS):
            [check] = checks
            assert isinstance(check, Staff), f"{method} {path} must be for staff: {check}"
            for_staff.append((method, re.sub(r"\{[^}]*\}", "1", path), type(check)))
    return for_staff


EVERYTHING = for_operators()


def test_there_is_something_to_walk() -> None:
    paths = {path for _, path, _ in EVERYTHING}
    assert {"/api/tree", "/api/tree/stream", "/api/tree/nodes/1/drain"} <= paths
    assert {"/api/operate/audit", "/api/operate/queues"} <= paths


@pytest.mark.parametrize(
    ("method", "path"), sorted({(method, path) for method, path, _ in EVERYTHING})
)
async def test_a_plain_user_sees_and_changes_nothing(
    method: str,
    path: str,
    web: httpx.AsyncClient,
    member: httpx.AsyncClient,
    program: httpx.AsyncClient,
    fake: FakeClient,
) -> None:
    for client in (member, program):
        answer = await client.request(method, path, json={})
        assert answer.status_code == 403, answer.text
        assert "only" in answer.json()["error"]["message"]
    assert (await web.request(method, path, json={})).status_code == 401
    assert (fake.controls, fake.cancels, fake.jobs) == ([], [], [])


@pytest.mark.parametrize(
    ("method", "path"),
    sorted({(method, path) for method, path, check in EVERYTHING if check is Administrator})
    or [("GET", "")],
)
async def test_staff_do_not_do_what_is_for_administrators(
    method: str, path: str, staff: httpx.AsyncClient, fake: FakeClient
) -> None:
    if not path:
        return  # nothing is
    answer = await staff.request(method, path, json={})
    assert answer.status_code == 403, answer.text
    assert fake.controls == []


async def test_djangos_admin_sends_a_plain_user_away(member: httpx.AsyncClient) -> None:
    answer = await member.get("/admin/")
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/admin/login")
