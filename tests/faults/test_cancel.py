"""A cancelled job ends wherever it is: its slot is free, its place in the line too."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from broker.client import Client
from broker.wire import ChatMessage, Finished, Job, Sampling, Start
from tests.instance import Instance, at_rest, jobs, running, total, tree_when

CHAT = "/v1/chat/completions"
ENDLESS = 100_000  # words: more than an hour of them
DEADLINE = 3.0  # seconds: long enough to be seen where it is first

Tree = dict[str, Any]
Cancel = Callable[[], None]


@dataclass(frozen=True)
class People:
    """Who asks, and who sees the tree."""

    instance: Instance
    program: httpx.Client
    staff: httpx.Client

    def tree(self, wanted: Callable[[Tree], bool]) -> None:
        """Returns when the tree is as wanted."""
        tree_when(self.staff, wanted)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """root -> n1 -> n2, a slot each, twenty words a second. With `paper` leaves hold jobs too."""
    tree = ["--nodes", "2", "--fanout", "1", "--slots", "1", "--policy", "paper"]
    options = ["--engine", "echo", "--token-delay", "0.05", *tree]
    with running(tmp_path_factory.mktemp("cancel"), *options) as instance:
        instance.add_people(somebody=False)
        with instance.program(instance.key()) as program, instance.session(instance.token) as staff:
            yield People(instance, program, staff)


# ---- where the job is


def node(tree: Tree, name: str) -> dict[str, Any]:
    """One node of the tree."""
    return next(each for each in tree["nodes"] if each["name"] == name)


@dataclass(frozen=True)
class Place:
    """`has`: the job is there. `others`: how many others run meanwhile."""

    has: Callable[[Tree], bool]
    others: int = 0


@contextmanager
def at_the_root(people: People) -> Iterator[Place]:
    """The only way down is closed."""
    people.staff.post("/api/tree/nodes/n1/drain")
    try:
        people.tree(lambda tree: node(tree, "n1")["state"] == "drained")
        yield Place(lambda tree: node(tree, "root")["queued"] == 1)
    finally:
        people.staff.post("/api/tree/nodes/n1/resume")
        people.tree(lambda tree: node(tree, "n1")["state"] != "drained")


@contextmanager
def at_a_leaf(people: People) -> Iterator[Place]:
    """Both slots are taken."""
    with jobs(people.program, 2, ENDLESS):
        people.tree(lambda tree: total(tree, "running") == 2)
        yield Place(lambda tree: node(tree, "n2")["queued"] == 1, others=2)


@contextmanager
def in_a_slot(people: People) -> Iterator[Place]:
    """Nothing is in its way."""
    yield Place(lambda tree: node(tree, "n1")["running"] == 1)


# ---- how it is said


def asking(people: People, **headers: str) -> AbstractContextManager[httpx.Response]:
    """A streamed answer without an end."""
    body = {
        "model": "echo",
        "stream": True,
        "max_tokens": ENDLESS,
        "messages": [{"role": "user", "content": "again"}],
    }
    return people.program.stream("POST", CHAT, json=body, headers=headers)


def last_event(answer: httpx.Response) -> dict[str, Any]:
    """The end of a stream, or what it failed of."""
    *_, last = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    return last


@contextmanager
def closed_connection(people: People) -> Iterator[Cancel]:
    with asking(people) as answer:
        yield answer.close


@contextmanager
def deleted(people: People) -> Iterator[Cancel]:
    def cancel() -> None:
        address = f"/api/jobs/{answer.headers['X-Request-Id']}"
        assert people.program.get(address).json()["model"] == "echo"
        assert people.program.delete(address).status_code == 204
        assert last_event(answer)["choices"][0]["finish_reason"] == "stop"
        after = people.program.get(address)
        assert after.status_code == 404 or after.json()["state"] == "done"

    with asking(people) as answer:
        yield cancel


@contextmanager
def stop_button(people: People) -> Iterator[Cancel]:
    conversation = (
        f"/api/conversations/{people.staff.post('/api/conversations', json={}).json()['id']}"
    )
    turn = people.staff.post(f"{conversation}/messages", json={"content": "again " * 5000}).json()

    def cancel() -> None:
        message = f"{conversation}/messages/{turn['assistant_message']['id']}"
        assert people.staff.post(f"{message}/stop").status_code == 204
        assert people.staff.get(conversation).json()["messages"][-1]["status"] == "stopped"

    yield cancel


@contextmanager
def deadline(people: People) -> Iterator[Cancel]:
    def wait() -> None:
        assert last_event(answer)["error"]["code"] == "deadline_exceeded"

    with asking(people, **{"X-Canopy-Deadline": str(DEADLINE)}) as answer:
        yield wait


# ---- every way in every place


@pytest.mark.parametrize("place", [at_the_root, at_a_leaf, in_a_slot])
@pytest.mark.parametrize("way", [closed_connection, deleted, stop_button, deadline])
def test_a_job_that_nobody_wants_is_gone(
    people: People,
    place: Callable[[People], AbstractContextManager[Place]],
    way: Callable[[People], AbstractContextManager[Cancel]],
) -> None:
    people.tree(at_rest)
    with place(people) as there, way(people) as cancel:
        people.tree(there.has)
        cancel()
        people.tree(
            lambda tree: total(tree, "running") == there.others and total(tree, "queued") == 0
        )
    people.tree(at_rest)
    answer = people.program.post("/arranca/", json={"text": "next please", "timestamp": 1})
    assert (answer.status_code, answer.json()["text"]) == (200, "next please")


async def test_a_job_of_another_process_is_cancelled_by_its_owner_alone(people: People) -> None:
    """The process that reads it is this one here, which has a client of its own."""
    client = Client(people.instance.broker.amqp["api"])
    await client.start()
    try:
        while not client.connected:
            await client.changed()
        sampling = Sampling(max_tokens=ENDLESS)
        words = (ChatMessage(role="user", content="again"),)
        job = Job(
            request_id="elsewhere",
            model="echo",
            reply_to="",
            created=0.0,
            messages=words,
            sampling=sampling,
            user="admin",
        )
        stream = await client.submit(job)
        assert isinstance(await anext(stream), Start)
        with ExitStack() as stack:
            stranger = stack.enter_context(people.instance.program(people.instance.key("somebody")))
            assert people.program.get("/api/jobs/elsewhere").status_code == 404
            assert stranger.delete("/api/jobs/elsewhere").status_code == 202
            for _ in range(20):
                await anext(stream)  # it goes on
            assert people.program.delete("/api/jobs/elsewhere").status_code == 202
            *_, end = [frame async for frame in stream]
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
    finally:
        await client.stop()
    people.tree(at_rest)
