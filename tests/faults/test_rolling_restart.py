"""`./canopy restart --rolling` under load replaces every process, and no reader notices."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.instance import Instance, running

READERS = 20
WORDS = 40  # an answer takes 0.8 s
LONG = 12_000  # words: an answer that outlasts the restart on any machine, and is stopped then
STAY = {"launcher", "epmd", "broker"}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """root -> n1 -> (n2, n3)"""
    options = ["--engine", "echo", "--nodes", "3", "--fanout", "2", "--token-delay", "0.02"]
    with running(tmp_path_factory.mktemp("rolling"), *options) as instance:
        yield instance


def pids(instance: Instance) -> dict[str, int]:
    return {each["name"]: each["pid"] for each in instance.record()["processes"]}


class Crowd:
    """Programs that ask again and again, half of them streaming, until they are told to stop."""

    def __init__(self, url: str, key: str) -> None:
        self.complaints: list[str] = []
        self.answered = 0
        self._going = True
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(base_url=url, timeout=60, headers=headers, limits=limits)
        self._readers = [asyncio.create_task(self._ask(number)) for number in range(READERS)]

    async def stop(self) -> None:
        """Returns when what was asked is answered."""
        self._going = False
        await asyncio.gather(*self._readers)
        await self._http.aclose()

    async def answers(self, more: int) -> None:
        """Returns when so many more have been answered."""
        wanted = self.answered + more
        async with asyncio.timeout(60):
            while self.answered < wanted and not self.complaints:  # noqa: ASYNC110 - a count, for a test
                await asyncio.sleep(0.05)

    async def _ask(self, reader: int) -> None:
        count = 0
        while self._going:
            words = [f"{reader}-{count}-{word}" for word in range(WORDS)]
            began = time.strftime("%H:%M:%S")
            try:
                text = await (self._streamed if reader % 2 else self._plain)(" ".join(words))
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.complaints.append(f"{began} {words[0]}: {error!r}")
            else:
                if text != " ".join(words):
                    self.complaints.append(f"{began} {words[0]}: {text!r}")
            count += 1
            self.answered += 1

    async def _plain(self, question: str) -> str:
        answer = await self._http.post(
            "/v1/chat/completions", json=_request(question, stream=False)
        )
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code} {answer.text}")
        return str(answer.json()["choices"][0]["message"]["content"])

    async def _streamed(self, question: str) -> str:
        text, last = "", ""
        async with self._http.stream(
            "POST", "/v1/chat/completions", json=_request(question, stream=True)
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    text += "".join(
                        choice["delta"].get("content") or "" for choice in chunk["choices"]
                    )
                last = line or last
        if last != "data: [DONE]":
            raise ValueError(f"{answer.status_code}, after {text!r}: {last}")
        return text


def _request(question: str, *, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": question}]
    return {"model": "echo", "stream": stream, "max_tokens": WORDS, "messages": messages}


async def test_every_process_is_replaced_and_every_answer_is_whole(instance: Instance) -> None:
    before = pids(instance)
    crowd = Crowd(instance.url, instance.key())
    await crowd.answers(READERS)
    said = await asyncio.to_thread(instance.canopy, "restart", "--rolling", "--json")
    await crowd.answers(2 * READERS)
    await crowd.stop()
    assert crowd.complaints == []

    events = [json.loads(line) for line in said.splitlines()]
    replaced = {
        each["name"]: (each["old"], each["new"]) for each in events if each["event"] == "replaced"
    }
    assert list(replaced) == ["api", "n3", "n2", "n1", "root"]
    assert events[-1]["event"] == "done"
    after = pids(instance)
    assert after.keys() == before.keys()
    assert {name for name, pid in after.items() if pid == before[name]} == STAY
    assert replaced == {name: (before[name], after[name]) for name in replaced}


def test_pages_reconnect_and_a_chat_answer_goes_on(instance: Instance) -> None:
    question = " ".join(f"w{number}" for number in range(LONG))
    with instance.session(instance.token) as staff, ThreadPoolExecutor() as beside:
        conversation = staff.post("/api/conversations", json={}).json()["id"]
        messages = f"/api/conversations/{conversation}/messages"
        turn = staff.post(messages, json={"content": question})
        assert turn.status_code == 201, turn.text
        answer = f"{messages}/{turn.json()['assistant_message']['id']}"
        page = beside.submit(_read_answer, staff, f"{answer}/stream")
        dashboard = beside.submit(_watch, staff)
        # With a longer grace an endless stream would outlast the command's time.
        said = instance.canopy("restart", "--rolling", "--grace", "3600")
        assert said.splitlines()[-2].startswith("replaced 5 processes")
        assert staff.post(f"{answer}/stop").is_success
        attached, text = page.result(timeout=60)
        assert question.startswith(text)
        assert attached > 1
        ended, line = dashboard.result(timeout=60)
        assert ended
        assert line == "event: tree"


def _read_answer(staff: httpx.Client, path: str) -> tuple[int, str]:
    """Reattaches like the page whenever the stream breaks; how often, and the last one's text."""
    attached = 0
    while True:
        attached, text, kind = attached + 1, "", ""
        with staff.stream("GET", path) as answer:
            for line in answer.iter_lines():
                kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
                if line.startswith("data: ") and kind == "delta":
                    text += json.loads(line.removeprefix("data: "))["text"]
        if kind == "done":
            return attached, text
        assert kind in ("delta", "waiting", ""), kind


def _watch(staff: httpx.Client) -> tuple[int, str]:
    """Follows the dashboard's events to their end; how often, and the next stream's first line."""
    ended = 0
    while True:
        with staff.stream("GET", "/api/tree/stream") as events:
            for line in events.iter_lines():
                if ended:
                    return ended, line
        ended += 1
