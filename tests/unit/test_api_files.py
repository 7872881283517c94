"""/v1/files: uploads on disk, within limits, for their user alone."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from api.accounts import keys
from api.accounts.models import User
from api.context import app
from api.files import cleaning, disk
from api.files.limits import FileLimits
from api.files.models import StoredFile
from api.files.upload import AT_ONCE, Spool
from api.settings import ENV
from tests.unit.api_site import FakeClient, browser, make_user

CONTENT = b'{"custom_id": "1"}\n'


async def upload(program: httpx.AsyncClient, content: bytes = CONTENT, **fields: Any) -> Any:
    name = fields.pop("name", "lines.jsonl")
    return await program.post(
        "/v1/files", files={"file": (name, content)}, data={"purpose": "batch", **fields}
    )


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets limits for one test."""

    def limit(**fields: int) -> None:
        object.__setattr__(ENV, "files", FileLimits(**fields))

    before = ENV.files
    yield limit
    object.__setattr__(ENV, "files", before)


def on_disk() -> list[Path]:
    """Everything below the directory of contents."""
    directory = Path(settings.ENV.home) / "files"
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_a_file_lives_as_openai_defines_it(program: httpx.AsyncClient, user: User) -> None:
    made = (await upload(program, name="../../étc/p\x00asswd")).json()
    assert made["object"] == "file" and made["purpose"] == "batch"
    assert (made["bytes"], made["status"]) == (len(CONTENT), "processed")
    assert "/" not in made["filename"] and "\x00" not in made["filename"]
    assert made["expires_at"] > made["created_at"]
    path = f"/v1/files/{made['id']}"
    assert (await program.get(path)).json() == made
    assert (await program.get("/v1/files", params={"purpose": "batch"})).json()["data"] == [made]
    assert (await program.get("/v1/files", params={"purpose": "vision"})).json()["data"] == []
    assert (await program.get("/v1/files", params={"purpose": "\x00"})).json()["data"] == []
    content = await program.get(f"{path}/content")
    assert (content.content, content.headers["content-length"]) == (CONTENT, str(len(CONTENT)))
    assert (await program.delete(path)).json() == {
        "id": made["id"],
        "object": "file",
        "deleted": True,
    }
    assert (await program.get(path)).status_code == 404
    assert (await program.get(f"{path}/content")).status_code == 404
    assert (await program.delete(path)).status_code == 404


async def test_contents_are_private_and_have_names_of_ours(program: httpx.AsyncClient) -> None:
    made = (await upload(program)).json()
    path = app().contents.path(made["id"].removeprefix("file-"))
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not list(app().contents.incoming.iterdir())


@pytest.mark.parametrize("name", ["../secret.key", "..", "", "a" * 24 + "/x", "Z" * 24])
def test_no_other_name_becomes_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        disk.ContentStore(tmp_path).path(name)


async def test_a_list_has_pages(program: httpx.AsyncClient) -> None:
    made = [(await upload(program, name=f"{number}")).json()["id"] for number in range(3)]
    first = (await program.get("/v1/files", params={"limit": 2})).json()
    assert [each["id"] for each in first["data"]] == [made[2], made[1]]
    assert first["has_more"]
    rest = (await program.get("/v1/files", params={"after": first["last_id"]})).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([made[0]], False)
    upwards = (await program.get("/v1/files", params={"order": "asc", "after": made[0]})).json()
    assert [each["id"] for each in upwards["data"]] == made[1:]


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", "/v1/files/file-x", None, "file_id"),
        ("GET", "/v1/files/file-x/content", None, "file_id"),
        ("DELETE", "/v1/files/file-x", None, "file_id"),
        ("GET", "/v1/files?after=file-x", None, "after"),
        ("GET", "/v1/batches/batch_x", None, "batch_id"),
        ("POST", "/v1/batches/batch_x/cancel", None, "batch_id"),
        ("GET", "/v1/batches?after=batch_x", None, "after"),
        (
            "POST",
            "/v1/batches",
            {
                "input_file_id": "file-x",
                "endpoint": "/v1/completions",
                "completion_window": "24h",
            },
            "input_file_id",
        ),
        ("GET", "/v1/jobs/job_x", None, "job_id"),
        ("GET", "/v1/jobs?after=job_x", None, "after"),
    ],
)
async def test_what_is_not_there_is_named(
    program: httpx.AsyncClient, method: str, path: str, body: Any, field: str
) -> None:
    answer = await program.request(method, path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "not_found", field)


async def test_files_are_their_users_alone(program: httpx.AsyncClient) -> None:
    made = (await upload(program)).json()
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        path = f"/v1/files/{made['id']}"
        for method, address in (("GET", path), ("DELETE", path), ("GET", f"{path}/content")):
            assert (await other.request(method, address)).status_code == 404
        assert (await other.get("/v1/files")).json()["data"] == []
        assert (await other.get("/v1/files", params={"after": made["id"]})).status_code == 404


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"purpose": "theft"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"content": b""}, "file"),
        ({"expires_after[seconds]": "5"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "x"}, "expires_after[seconds]"),
        (
            {"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
        ),
    ],
)
async def test_what_is_wrong_is_named(
    program: httpx.AsyncClient, fields: dict[str, Any], field: str
) -> None:
    answer = await upload(program, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense"),
    ],
)
async def test_another_body_is_refused(
    program: httpx.AsyncClient, content_type: str, body: bytes
) -> None:
    headers = {"Content-Type": content_type}
    answer = await program.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


async def test_an_expiry_of_its_own(program: httpx.AsyncClient) -> None:
    made = (await upload(program, **{"expires_after[seconds]": "3600"})).json()
    assert made["expires_at"] - made["created_at"] in (3599, 3600)


async def test_a_user_has_so_many_files(program: httpx.AsyncClient, limits: Any) -> None:
    limits(user_files=1)
    assert (await upload(program)).status_code == 200
    before = on_disk()
    answer = await upload(program)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "too_many_files")
    assert "DELETE" in answer.json()["error"]["message"]
    assert on_disk() == before


async def test_a_users_files_have_so_many_bytes(program: httpx.AsyncClient, limits: Any) -> None:
    limits(user_bytes=len(CONTENT) + 1)
    assert (await upload(program)).status_code == 200
    answer = await upload(program)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "storage_full")


async def test_a_file_has_so_many_bytes(program: httpx.AsyncClient, limits: Any) -> None:
    limits(file_bytes=100)
    before = on_disk()
    assert (await upload(program, b"x" * 101)).status_code == 413
    assert (await upload(program, b"x" * 200_000)).status_code == 413
    assert on_disk() == before


async def test_a_file_may_be_larger_than_a_body(program: httpx.AsyncClient) -> None:
    content = os.urandom(3 * settings.MAX_BODY)
    made = (await upload(program, content)).json()
    assert (await program.get(f"/v1/files/{made['id']}/content")).content == content


async def test_nobody_uploads_without_a_key(web: httpx.AsyncClient) -> None:
    before = on_disk()
    assert (await upload(web)).status_code == 401
    assert (await upload(web, b"x" * 200_000)).status_code == 401
    assert on_disk() == before


async def test_expired_files_are_deleted(program: httpx.AsyncClient) -> None:
    made = (await upload(program)).json()
    content = made["id"].removeprefix("file-")
    rows = StoredFile.objects.filter(content=content)
    await rows.aupdate(expires=timezone.now() - timedelta(seconds=1))
    await cleaning.clean(app().contents, 7)
    assert (await program.get(f"/v1/files/{made['id']}")).status_code == 404
    assert not app().contents.path(content).exists()


async def test_contents_without_a_row_are_deleted(program: httpx.AsyncClient, user: User) -> None:
    old, young = [(await upload(program)).json()["id"].removeprefix("file-") for _ in range(2)]
    await user.adelete()
    contents = app().contents
    lost = contents.incoming / "lost.upload"
    lost.write_bytes(b"x")
    past = time.time() - 2 * disk.ABANDONED_SECONDS
    for path in (contents.path(old), lost):
        os.utime(path, (past, past))
    await cleaning.clean(contents, 7)
    assert not contents.path(old).exists() and not lost.exists()
    assert contents.path(young).exists()  # its row may be about to be stored
    await asyncio.to_thread(contents.delete, young)


async def test_an_upload_goes_through_the_real_server(
    live: str, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    content = os.urandom(2_500_000)
    async with httpx.AsyncClient(base_url=live, headers=program.headers) as client:
        made = (await upload(client, content)).json()
        assert made["bytes"] == len(content)
        assert (await client.get(f"/v1/files/{made['id']}/content")).content == content


async def test_who_sends_slowly_holds_up_nobody_else(tmp_path: Path) -> None:
    spool, end = Spool(tmp_path), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await end.wait()

    async def fast() -> AsyncIterator[bytes]:
        yield b"b"

    sending = [asyncio.create_task(spool.spool(slow(), "192.0.2.1")) for _ in range(AT_ONCE)]
    sending.append(asyncio.create_task(spool.spool(fast(), "192.0.2.1")))
    async with asyncio.timeout(10):
        with await spool.spool(fast(), "192.0.2.2") as file:
            assert file.read() == b"b"
        assert not any(task.done() for task in sending)
        end.set()
        for task in sending:
            (await task).close()
    assert not spool._senders
