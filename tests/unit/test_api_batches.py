"""/v1/batches: each line gets one result, whatever becomes of the process that runs them."""

import asyncio
import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from api.accounts import keys
from api.accounts.models import User
from api.batches import lines, manager, run, store
from api.batches.models import Batch
from api.context import app
from api.errors import ApiError
from api.files import store as files
from api.plans import store as plans
from broker.errors import Unavailable
from broker.wire import Failed, Job
from tests.unit.api_site import FakeClient, beginning, browser, echo, make_user, node_state, until

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than a test needs."""
    monkeypatch.setattr(manager, "EVERY", 0.02)
    monkeypatch.setattr(run, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(run, "PAUSE_SECONDS", (0.01, 0.05))


@pytest.fixture(autouse=True)
async def no_batches_of_others(fake: FakeClient) -> Any:
    """What a test leaves open is not for the next one."""
    yield
    await Batch.objects.all().adelete()


def line(number: int, text: str = "", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text or f"word{number} two"}]
    body = {"model": "tiny", "messages": messages}
    return {"custom_id": f"id-{number}", "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def uploaded(program: httpx.AsyncClient, content: bytes, purpose: str = "batch") -> str:
    answer = await program.post(
        "/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": purpose}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


async def made(program: httpx.AsyncClient, content: bytes, **fields: Any) -> dict[str, Any]:
    body = {
        "input_file_id": await uploaded(program, content),
        "endpoint": CHAT,
        "completion_window": "24h",
        **fields,
    }
    answer = await program.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def when(program: httpx.AsyncClient, batch: dict[str, Any], *statuses: str) -> dict[str, Any]:
    """The batch once it has one of these statuses."""
    async with asyncio.timeout(20):
        while True:
            now = (await program.get(f"/v1/batches/{batch['id']}")).json()
            if now["status"] in statuses:
                return now
            await asyncio.sleep(0.01)


async def content(program: httpx.AsyncClient, file: str | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    answer = await program.get(f"/v1/files/{file}/content")
    return [json.loads(each) for each in answer.text.splitlines()]


def texts(results: list[dict[str, Any]]) -> list[str]:
    return [each["response"]["body"]["choices"][0]["message"]["content"] for each in results]


async def test_a_batch_lives_as_openai_defines_it(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    batch = await made(program, jsonl([line(1), line(2), line(3)]), metadata={"for": "a test"})
    assert (batch["object"], batch["status"]) == ("batch", "validating")
    assert batch["expires_at"] - batch["created_at"] in (86_399, 86_400)
    done = await when(program, batch, "completed")
    assert done["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert (done["metadata"], done["model"]) == ({"for": "a test"}, "tiny")
    assert done["completed_at"] >= done["finalizing_at"] >= done["in_progress_at"]
    assert done["error_file_id"] is None
    results = await content(program, done["output_file_id"])
    assert [each["custom_id"] for each in results] == ["id-1", "id-2", "id-3"]
    assert texts(results) == ["word1 two", "word2 two", "word3 two"]
    assert all(each["error"] is None for each in results)
    assert {each["response"]["status_code"] for each in results} == {200}
    assert {job.job_class for job in fake.jobs} == {"batch"}
    file = (await program.get(f"/v1/files/{done['output_file_id']}")).json()
    assert file["purpose"] == "batch_output"
    assert not list(app().contents.partial.iterdir())
    assert (await program.get("/v1/batches")).json()["data"] == [done]


async def test_a_byte_order_mark_is_skipped(program: httpx.AsyncClient) -> None:
    batch = await made(program, b"\xef\xbb\xbf" + jsonl([line(1)]))
    assert (await when(program, batch, "completed"))["request_counts"]["completed"] == 1


async def test_lines_that_are_wrong_have_errors_of_their_own(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    wrong = line(2)
    wrong["body"]["temperature"] = 7
    unknown = line(3)
    unknown["body"]["model"] = "nobody's"
    streamed = line(4)
    streamed["body"]["stream"] = True
    lines = jsonl([line(1), wrong, unknown, streamed])
    done = await when(program, await made(program, b"\xef\xbb\xbf\n" + lines + b"\n"), "completed")
    assert done["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    errors = await content(program, done["error_file_id"])
    assert [each["custom_id"] for each in errors] == ["id-2", "id-3"]
    assert [each["response"]["status_code"] for each in errors] == [400, 404]
    assert errors[0]["response"]["body"]["error"]["param"] == "temperature"
    assert texts(await content(program, done["output_file_id"])) == ["word1 two", "word4 two"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b" \n \n", "empty_file"),
        (b"{not json\n", "invalid_json"),
        (b'{"custom_id": 1}\n', "invalid_request"),
        (b"[" * 100_000 + b"\n", "invalid_request"),
        (b"\xff\xfe\n", "invalid_json"),
        (jsonl([line(1), line(1)]), "duplicate_custom_id"),
        (jsonl([line(1, url="/v1/completions")]), "mismatched_url"),
        (jsonl([line(1, method="GET")]), "invalid_method"),
        (jsonl([line(1, custom_id="")]), "invalid_custom_id"),
        (b"x" * 3_000_000 + b"\n", "line_too_long"),
    ],
    ids=lambda each: str(each)[:20] if not isinstance(each, bytes) else "lines",
)
async def test_a_file_that_is_wrong_fails_the_batch(
    program: httpx.AsyncClient, fake: FakeClient, content: bytes, code: str
) -> None:
    done = await when(program, await made(program, content), "failed", "completed")
    assert done["status"] == "failed"
    [error] = done["errors"]["data"]
    assert error["code"] == code
    assert error["line"] in (1, 2, None)
    assert fake.jobs == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/audio"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "99d"}, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ],
)
async def test_what_is_wrong_with_a_batch_is_named(
    program: httpx.AsyncClient, changes: dict[str, Any], param: str
) -> None:
    file = await uploaded(program, jsonl([line(1)]))
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **changes}
    answer = await program.post("/v1/batches", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


async def test_a_file_is_the_users_and_for_batches(program: httpx.AsyncClient) -> None:
    other = await uploaded(program, b"x", purpose="user_data")
    body = {"input_file_id": other, "endpoint": CHAT, "completion_window": "24h"}
    assert (await program.post("/v1/batches", json=body)).status_code == 400
    body["input_file_id"] = "file-" + "0" * 24
    assert (await program.post("/v1/batches", json=body)).status_code == 404


async def test_batches_are_their_users_alone(program: httpx.AsyncClient) -> None:
    batch = await made(program, jsonl([line(1)]))
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        assert (await other.get(f"/v1/batches/{batch['id']}")).status_code == 404
        assert (await other.post(f"/v1/batches/{batch['id']}/cancel")).status_code == 404
        assert (await other.get("/v1/batches")).json()["data"] == []


async def test_a_user_has_so_many_open_batches(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_OPEN", 1)
    fake.script = lambda job: []
    await made(program, jsonl([line(1)]))
    file = await uploaded(program, jsonl([line(1)]))
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    answer = await program.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_batches")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_file_in_use_stays(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    batch = await made(program, jsonl([line(1)]))
    answer = await program.delete(f"/v1/files/{batch['input_file_id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")


async def test_a_cancelled_batch_keeps_what_it_has(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: echo(job) if "word1 " in job.messages[-1].content else []  # type: ignore[index]
    batch = await made(program, jsonl([line(number) for number in range(1, 6)]))
    await until(lambda: len(fake.jobs) >= 2, 20)
    await until(lambda: app().contents.parts(batch["id"][6:])[0].stat().st_size)
    answer = await program.post(f"/v1/batches/{batch['id']}/cancel")
    assert answer.json()["status"] in ("cancelling", "cancelled")
    done = await when(program, batch, "cancelled")
    assert done["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    errors = await content(program, done["error_file_id"])
    assert [each["custom_id"] for each in errors] == [f"id-{number}" for number in range(2, 6)]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert texts(await content(program, done["output_file_id"])) == ["word1 two"]
    assert fake.cancelled, "the line in flight was cancelled in the tree"
    again = await program.post(f"/v1/batches/{batch['id']}/cancel")
    assert again.status_code == 409


async def test_a_line_that_only_the_check_could_read_fails_alone(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line may be nested as deeply as the stack of the checking thread allowed."""
    parse = lines.parse

    def parse_on_a_small_stack(number: int, raw: bytes, endpoint: str) -> lines.Line:
        if number == 2 and threading.current_thread() is threading.main_thread():
            raise lines.BadLine("invalid_json", "nested too deeply")
        return parse(number, raw, endpoint)

    monkeypatch.setattr(lines, "parse", parse_on_a_small_stack)
    done = await when(program, await made(program, jsonl([line(1), line(2)])), "completed")
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    [error] = await content(program, done["error_file_id"])
    assert error["error"]["code"] == "invalid_json"


async def test_a_batch_expires(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.script = lambda job: []
    batch = await made(program, jsonl([line(1), line(2)]))
    await when(program, batch, "in_progress")
    await Batch.objects.filter(name=batch["id"][6:]).aupdate(expires=timezone.now())
    for running in app().batches._running.values():
        running.cancel()
    await store.release_all()  # the next owner reads the new time
    done = await when(program, batch, "expired")
    errors = await content(program, done["error_file_id"])
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}
    assert len(errors) == 2


async def test_a_refusal_is_waited_out(program: httpx.AsyncClient, fake: FakeClient) -> None:
    batch_lines = jsonl([line(number) for number in range(3)])
    file = await uploaded(program, batch_lines)
    refusals = 0
    submit = fake.submit

    async def busy(job: Job) -> Any:
        nonlocal refusals
        refusals += 1
        if refusals < 4:
            raise Unavailable("busy")
        return await submit(job)

    fake.submit = busy  # type: ignore[method-assign]
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    batch = (await program.post("/v1/batches", json=body)).json()
    done = await when(program, batch, "completed")
    assert done["request_counts"]["completed"] == 3


async def test_a_line_that_fails_again_and_again_is_given_up(
    program: httpx.AsyncClient, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MOST_FAILURES", 1)
    fake.script = lambda job: [
        Failed(request_id=job.request_id, code="engine", message="it broke", retryable=True)
    ]
    done = await when(program, await made(program, jsonl([line(1)])), "completed")
    [error] = await content(program, done["error_file_id"])
    assert error["response"]["status_code"] == 503


async def test_every_line_has_one_result_whoever_runs_it(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    """The runner dies again and again in the middle; its files are all that the next one has."""
    fake.states["n1"] = node_state("n1", slots=8)
    batch = await made(program, jsonl([line(number) for number in range(300)]))
    for _ in range(5):
        fake.submitted.clear()
        await fake.submitted.wait()
        for running in app().batches._running.values():
            running.cancel()
        await store.release_all()
    done = await when(program, batch, "completed")
    assert done["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
    results = await content(program, done["output_file_id"])
    assert [each["custom_id"] for each in results] == [f"id-{number}" for number in range(300)]
    assert texts(results) == [f"word{number} two" for number in range(300)]


async def test_what_a_slow_owner_writes_late_counts_no_more(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    batch = await made(program, jsonl([line(1)]))
    await when(program, batch, "in_progress")
    async with asyncio.timeout(5):  # between two heartbeats
        while not await store.claim(await Batch.objects.aget(name=batch["id"][6:])):
            pass
    fake.script = echo
    done = await when(program, batch, "in_progress")
    assert done["output_file_id"] is None
    await until(lambda: not app().batches._running)
    await store.release_all()
    assert (await when(program, batch, "completed"))["request_counts"]["completed"] == 1


async def test_a_batch_ends_with_its_users_account(
    program: httpx.AsyncClient, fake: FakeClient, user: User
) -> None:
    fake.script = lambda job: []
    batch = await made(program, jsonl([line(1)]))
    await when(program, batch, "in_progress")
    await User.objects.filter(pk=user.pk).aupdate(is_active=False)
    async with asyncio.timeout(10):
        while (await Batch.objects.aget(name=batch["id"][6:])).status != "cancelled":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_lines_leave_a_slot_free(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states["n1"] = node_state("n1", slots=8)
    fake.script = beginning("and")
    batch = await made(program, jsonl([line(number) for number in range(20)]))
    await when(program, batch, "in_progress")
    await until(lambda: len(fake.streams) >= 7)
    await asyncio.sleep(0)
    assert len(fake.streams) == 7


async def test_old_batches_are_forgotten(program: httpx.AsyncClient) -> None:
    batch = await made(program, jsonl([line(1)]))
    await when(program, batch, "completed")
    old = timezone.now() - store.KEPT - timedelta(days=1)
    await Batch.objects.filter(name=batch["id"][6:]).aupdate(created=old)
    await store.forget_old()
    assert (await program.get(f"/v1/batches/{batch['id']}")).status_code == 404


async def test_a_user_whose_plan_is_used_up_keeps_nobody_else_waiting(
    program: httpx.AsyncClient, fake: FakeClient, user: User
) -> None:
    """Two slots, of which one is for interactive users: the lines run one by one."""
    await sync_to_async(plans.put)("slow", {"requests_per_minute": 1})
    await sync_to_async(plans.assign)(user.username, "slow")
    await app().plans.changed()
    app().keys.clear()
    mine = await made(program, jsonl([line(number) for number in range(9)]))
    await until(lambda: fake.jobs, 20)
    await asyncio.sleep(0.1)
    async with browser() as other:
        key = await sync_to_async(keys.create)(await make_user())
        other.headers["Authorization"] = f"Bearer {key}"
        done = await when(other, await made(other, jsonl([line(1), line(2)])), "completed")
    assert done["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert (await program.get(f"/v1/batches/{mine['id']}")).json()["status"] == "in_progress"
    tries = [each for each in asyncio.all_tasks() if "_answer_paced" in repr(each.get_coro())]
    assert len(tries) == 1  # not one for each line


async def test_a_batch_without_its_file_fails(program: httpx.AsyncClient, fake: FakeClient) -> None:
    """In the middle: it can neither go on nor put its results in order."""
    fake.script = lambda job: []
    batch = await made(program, jsonl([line(1), line(2)]))
    await until(lambda: fake.jobs, 20)
    app().contents.delete((await Batch.objects.aget(name=batch["id"][6:])).input_content)
    await program.post(f"/v1/batches/{batch['id']}/cancel")
    done = await when(program, batch, "failed", "cancelled")
    assert done["status"] == "failed"
    assert done["errors"]["data"][0]["code"] == "missing_file"


def test_a_model_can_be_stored_in_every_database(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([line(1, body={"model": "a\x00", "background": True})]))
    assert lines.check(file, CHAT).model == "a\ufffd"
    assert b"background" not in lines.parse(1, file.read_bytes(), CHAT).body


async def test_a_batch_of_a_file_that_was_just_deleted_is_refused(
    program: httpx.AsyncClient, user: User
) -> None:
    file = await files.find(user, await uploaded(program, jsonl([line(1)])))
    await files.delete(file, app().contents)
    with pytest.raises(ApiError) as refused:
        await store.create(user, file, timedelta(hours=1), endpoint=CHAT, window="1h")
    assert refused.value.status == 404
