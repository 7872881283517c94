"""The audit log: what is recorded, who reads it, how it is bounded."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.contrib import admin
from django.utils import timezone

from api.accounts.models import User
from api.errors import ApiError
from api.operate.audit import store
from api.operate.audit.models import AuditEntry
from api.operate.audit.record import record, recorded
from tests.unit.api_site import FakeClient, make_user


class Request:
    """As much of a request as the log needs."""

    def __init__(self, user: User) -> None:
        self.auth = user


@pytest.fixture
async def operator(fake: FakeClient) -> Any:
    """An operator's request, and an empty log."""
    await AuditEntry.objects.all().adelete()
    return Request(await make_user(is_staff=True))


async def entries(client: httpx.AsyncClient, **filters: Any) -> list[dict[str, Any]]:
    """The log as the endpoint shows it."""
    answer = await client.get("/api/operate/audit", params=filters)
    assert answer.status_code == 200, answer.text
    shown: list[dict[str, Any]] = answer.json()["entries"]
    return shown


async def test_actions_on_nodes_are_recorded(operator: Any, staff: httpx.AsyncClient) -> None:
    who = (await staff.get("/api/me")).json()["user"]["name"]
    await staff.post("/api/tree/nodes/n1/drain")
    await staff.post("/api/tree/nodes/nobody/resume")
    refused, done = await entries(staff)
    assert (done["who"], done["action"], done["target"], done["result"]) == (
        who,
        "drain",
        "n1",
        "done",
    )
    assert (refused["action"], refused["result"]) == ("resume", "there is no node 'nobody'")


async def test_the_log_is_for_staff(operator: Any, member: httpx.AsyncClient) -> None:
    assert (await member.get("/api/operate/audit")).status_code == 403


async def test_an_action_that_broke_off_stays_begun(operator: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with recorded(operator, "drain", "n1"):
            raise ZeroDivisionError
    with pytest.raises(ApiError):
        async with recorded(operator, "drain", "n2"):
            raise ApiError(503, "not now", code="unavailable")
    async with recorded(operator, "drain", "n3") as entry:
        entry.result = "7 jobs went elsewhere"
    results = [entry.result async for entry in AuditEntry.objects.order_by("pk")]
    assert results == ["began", "not now", "7 jobs went elsewhere"]


async def test_long_texts_are_cut_and_names_outlive_accounts(operator: Any) -> None:
    name = operator.auth.username
    entry = await record(operator, "a" * 99, "t\x00" * 999, "d" * 999)
    assert (len(entry.action), len(entry.target), len(entry.detail)) == (60, 200, 500)
    assert "\x00" not in entry.target
    await operator.auth.adelete()
    await entry.arefresh_from_db()
    assert (entry.who, entry.user_id) == (name, None)


async def test_filters_and_pages(operator: Any, staff: httpx.AsyncClient) -> None:
    for number in range(5):
        await record(operator, "drain", f"n{number}", detail=f"turn {number}")
    await record(operator, "cancel job", "abc")
    assert len(await entries(staff, action="drain")) == 5
    assert [entry["target"] for entry in await entries(staff, text="turn 3")] == ["n3"]
    assert await entries(staff, who="nobody") == []
    hour = timedelta(hours=1)
    assert await entries(staff, since=(timezone.now() + hour).isoformat()) == []
    assert len(await entries(staff, until=(timezone.now() + hour).isoformat())) == 6
    first = (await staff.get("/api/operate/audit", params={"limit": 4})).json()
    rest = (await staff.get("/api/operate/audit", params={"before": first["next"]})).json()
    assert [entry["target"] for entry in rest["entries"]] == ["n1", "n0"]
    assert rest["next"] is None
    assert first["actions"] == ["cancel job", "drain"]


async def test_old_and_surplus_entries_go(operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_ENTRIES", 2)
    for number in range(4):
        await record(operator, "drain", f"n{number}")
    old = timezone.now() - timedelta(days=401)
    await AuditEntry.objects.filter(target="n3").aupdate(when=old)
    assert await store.purge_some() == 3
    assert [entry.target async for entry in AuditEntry.objects.all()] == ["n2"]
    assert await store.purge_some() == 0


def test_the_admin_only_reads() -> None:
    page = admin.site._registry[AuditEntry]
    request: Any = None
    assert not page.has_add_permission(request)
    assert not page.has_change_permission(request)
    assert not page.has_delete_permission(request)
