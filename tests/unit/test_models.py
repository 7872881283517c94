"""Models as operators handle them: settings, limits, rules, and where the autoscaler acts."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Collection
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from django.db import DatabaseError
from structlog.testing import capture_logs

from api.accounts.models import User
from api.context import app
from api.errors import ApiError
from api.openai.schemas import ChatCompletion
from api.operate.audit.store import begin_command
from api.operate.hosts.schemas import StartBody, Started
from api.operate.models import scaled, store, trees
from api.operate.models.autoscaler import Autoscaler
from api.operate.models.load import ScaledNode, gone, host_for, load_of, superfluous
from api.operate.models.store import NO_CARD, Card, applied
from api.operate.models.trees import ModelTrees
from api.operate.models.view import served
from api.preferences.style import Style
from api.requests.build import CONVERSATION, prompt_job
from broker.host_messages import HostModel, HostNode, HostState
from broker.operator_messages import BrokerOverview
from broker.stream import Stream
from broker.wire import Drain, Resume, Sampling
from tests.unit.api_site import FakeClient, beginning, echo, until
from tests.unit.test_tree_actions import tree
from topology.autoscale import Rule


def host(name: str, *nodes: HostNode, **changes: Any) -> HostState:
    fields: dict[str, Any] = {
        "name": name,
        "host": name,
        "sent": time.time(),
        "cpus": 2,
        "memory": 10**10,
        "memory_free": 10**9,
        "engine": "echo",
        "max_nodes": 4,
        "models": (HostModel(name="tiny"),),
        "nodes": nodes,
    }
    return HostState(**{**fields, **changes})


def running(name: str) -> HostNode:
    return HostNode(name=name, state="running")


def started(name: str) -> HostNode:
    """On request: its host says for which model."""
    return HostNode(name=name, state="running", model="tiny")


def scaled_node(name: str, host: str = "here") -> ScaledNode:
    return ScaledNode(name=name, model="tiny", host=host)


def test_the_load_counts_nodes_that_start() -> None:
    times = {"oldest_wait": 0.0}
    seen = tree(
        **dict.fromkeys(("n1", "n3", "n4", "root-big", "m1"), times),
        n2={"running": 2, **times},
        root={"queued": 3, "oldest_wait": 7.5},
    )
    starting = host("a", HostNode(name="n9", state="starting", model="tiny"))
    now = load_of(seen, [starting], "tiny", [])
    assert (now.nodes, now.changing, now.slots, now.largest) == (5, 1, 8, 2)
    assert (now.running, now.waiting, now.oldest_wait) == (2, 3, 7.5)
    assert not now.removable
    assert load_of(seen, [], "tiny", [scaled_node("n3")]).removable
    leaving = load_of(seen, [], "tiny", [replace(scaled_node("n3"), leaving=True)])
    assert leaving.changing == 1


def test_a_node_goes_where_there_is_room_and_memory() -> None:
    full = host("full", running("n1"), max_nodes=1, memory_free=9 * 10**9)
    other = host("other", models=(HostModel(name="big"),), memory_free=9 * 10**9)
    assert host_for([full, other, host("small"), host("large", memory_free=2 * 10**9)], "tiny") == (
        "large"
    )
    assert host_for([full, other], "tiny") is None


def test_the_idlest_leaf_that_the_autoscaler_started_is_ended() -> None:
    seen = tree(n3={"running": 1})
    n2, n3, n4 = map(scaled_node, ("n2", "n3", "n4"))
    assert superfluous(seen, "tiny", [n3, n2]) == n3, "n2 has children"
    assert superfluous(seen, "tiny", [n3, n4]) == n4
    assert superfluous(seen, "tiny", []) is None, "up started them all"


def test_a_node_that_its_host_no_longer_runs_on_request_is_nobodys() -> None:
    away = scaled_node("n1", host="away")
    mine, ended, again = map(scaled_node, ("n2", "n3", "n4"))
    here = host("here", started("n2"), HostNode(name="n3", state="removed"), running("n4"))
    assert gone({"here": here}, [away, mine, ended, again]) == [ended, again]


@pytest.mark.parametrize(
    ("asked", "card", "tokens"),
    [
        (None, Card(), None),
        (None, Card(max_tokens=100), 100),
        (500, Card(max_tokens=100), 500),
        (500, Card(most_tokens=200), 200),
        (None, Card(most_tokens=200), 200),
        (None, Card(max_tokens=500, most_tokens=200), 200),
    ],
)
def test_a_models_numbers_of_tokens_hold(asked: int | None, card: Card, tokens: int | None) -> None:
    assert applied(card, Sampling(max_tokens=asked)).max_tokens == tokens


def test_a_models_defaults_fill_what_a_request_left_out_and_nothing_else() -> None:
    card = Card(temperature=0.2, top_k=0, min_p=0.1)
    partly = Sampling(temperature=1.5, top_k=9, defaulted=("top_k", "top_p"))
    assert applied(card, partly) == Sampling(temperature=1.5, top_k=0)
    assert applied(card, CONVERSATION) == Sampling(temperature=0.2, top_p=0.95, top_k=0, min_p=0.1)
    assert applied(NO_CARD, CONVERSATION) == Sampling(temperature=0.7, top_p=0.95)
    style = Style(temperature=0.9)
    assert applied(card, style.sampling(CONVERSATION)).temperature == 0.9
    asked = ChatCompletion(model="tiny", messages=[{"role": "user", "content": "x"}], min_p=0)
    assert applied(card, asked.sampling()) == Sampling(temperature=0.2)


async def test_defaults_reach_jobs_of_the_page_and_of_programs(
    staff: httpx.AsyncClient, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    body = {"model": "tiny", "temperature": 0.3, "repetition_penalty": 1.2}
    assert (await staff.put("/api/operate/models/settings", json=body)).status_code == 204
    question = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1}
    assert (await program.post("/v1/chat/completions", json=question)).status_code == 200
    assert fake.jobs[-1].sampling.temperature == 1.0
    assert fake.jobs[-1].sampling.repetition_penalty == 1.2
    assert fake.jobs[-1].sampling.defaulted == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("top_p", 0),
        ("top_k", -1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", -2.5),
        ("most_requests", 0),
    ],
)
async def test_a_default_out_of_bounds_is_refused(
    staff: httpx.AsyncClient, name: str, value: float
) -> None:
    body = {"model": "tiny", name: value}
    answer = await staff.put("/api/operate/models/settings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == name


async def test_a_user_has_so_many_requests_at_a_time(user: User, fake: FakeClient) -> None:
    await app().cards.put("tiny", Card(most_requests=1))
    fake.script = beginning("and then")

    def submit(model: str = "tiny", **changes: Any) -> Awaitable[Stream]:
        return app().submitter.submit(prompt_job(model, "x", Sampling(), user, **changes))

    first, *refused = await asyncio.gather(submit(), submit(), return_exceptions=True)
    assert isinstance(first, Stream)
    [refusal] = refused
    assert isinstance(refusal, ApiError)
    assert (refusal.status, refusal.code, refusal.headers["Retry-After"]) == (
        429,
        "user_limit",
        "5",
    )
    assert "the limit of this model is 1 at a time" in refusal.message
    others = [await submit("big"), await submit(job_class="batch")]
    await first.aclose()
    await (await submit()).aclose()
    for other in others:
        await other.aclose()
    fake.trees.clear()
    for _ in range(2):  # one that the broker refuses is not counted
        with pytest.raises(ApiError, match="not up"):
            await submit()


async def test_choices_count_as_requests_of_their_user(
    user: User, program: httpx.AsyncClient, fake: FakeClient
) -> None:
    await app().cards.put("tiny", Card(most_requests=2))
    question = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    too_many = await program.post("/v1/chat/completions", json={**question, "n": 3})
    error = too_many.json()["error"]
    assert (too_many.status_code, error["code"], error["param"]) == (400, "too_large", "n")
    fake.script = beginning("and then")
    running = await app().submitter.submit(prompt_job("tiny", "x", Sampling(), user))
    fake.script = echo
    busy = await program.post("/v1/chat/completions", json={**question, "n": 2})
    assert (busy.status_code, busy.json()["error"]["code"]) == (429, "user_limit")
    assert len(fake.jobs) == 1, "none of them was submitted"
    await running.aclose()
    fitting = await program.post("/v1/chat/completions", json={**question, "n": 2})
    assert (fitting.status_code, len(fitting.json()["choices"])) == (200, 2)


async def test_a_replay_is_no_request_of_its_user(user: User, fake: FakeClient) -> None:
    await app().cards.put("tiny", Card(most_requests=1))
    fake.script = beginning("and then")
    replay = await app().submitter.publish(prompt_job("tiny", "x", Sampling(), user))
    own = await app().submitter.submit(prompt_job("tiny", "x", Sampling(), user))
    await replay.aclose()
    with pytest.raises(ApiError, match="the limit of this model is 1"):
        await app().submitter.submit(prompt_job("tiny", "x", Sampling(), user))
    await own.aclose()
    resumed = await app().submitter.resubmit(prompt_job("tiny", "x", Sampling(), user))
    with pytest.raises(ApiError, match="the limit of this model is 1"):
        await app().submitter.submit(prompt_job("tiny", "x", Sampling(), user))
    await resumed.aclose()


async def test_settings_are_stored_and_shown_on_the_chat_page(staff: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "description": "Small and quick", "most_tokens": 50}
    assert (await staff.put("/api/operate/models/settings", json=body)).status_code == 204
    models = (await staff.get("/api/models")).json()["models"]
    assert next(each for each in models if each["id"] == "tiny")["description"] == "Small and quick"
    assert app().cards.of("tiny").most_tokens == 50


async def test_nodes_are_listed_with_what_their_models_take() -> None:
    gpu = {"device": "cuda:0", "host": "h", "memory_total": 100, "memory": 30}
    model = {"precision": "bfloat16", "weights": 20, "cache": 5}
    seen = tree(n2={**gpu, **model}, n3=gpu, n4={"memory_total": 50, "memory_free": 7})
    listed = {each.model: each for each in served(seen, {}, {"tiny": 512}, {}, {})}
    nodes = {node.name: node for node in listed["tiny"].nodes}
    assert listed["tiny"].context == 512
    assert (nodes["n2"].precision, nodes["n2"].weights, nodes["n2"].cache) == ("bfloat16", 20, 5)
    assert (nodes["n2"].memory_free, nodes["n4"].memory_free) == (40, 7)
    assert nodes["root"].root
    assert [node.name for node in listed["big"].nodes] == ["root-big", "m1"]


async def test_a_rule_is_checked_stored_and_removed(staff: httpx.AsyncClient) -> None:
    path = "/api/operate/models/autoscale"
    wrong = {"model": "tiny", "least": 3, "most": 2}
    assert (await staff.put(path, json=wrong)).status_code == 400
    right = {"model": "tiny", "least": 1, "most": 2}
    assert (await staff.put(path, json=right)).status_code == 204
    assert (await staff.post(f"{path}/off", json={"model": "tiny"})).status_code == 204
    assert (await staff.post(f"{path}/off", json={"model": "tiny"})).status_code == 404
    entries = (await staff.get("/api/operate/audit")).json()["entries"]
    assert [entry["action"] for entry in entries[:3]] == [
        "autoscaler off",
        "autoscaler off",
        "set autoscaler",
    ]


# ---- what goes on in the background


async def test_a_load_or_stop_that_fails_later_says_why(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line exits with that."""
    monkeypatch.setattr(trees, "ROOT_SECONDS", 0.05)
    monkeypatch.setattr(trees, "LEAVE_SECONDS", 0.05)
    nodes, hosts = FakeNodes(), FakeHosts()
    models = ModelTrees(cast(Any, FakeTree()), cast(Any, hosts), cast(Any, nodes), "tiny")
    entry = await begin_command("load model", "third")
    await models.load("here", StartBody(model="third"), entry)
    assert await models.settled() == ["the root root-third does not serve after 0 s"]
    await entry.arefresh_from_db()
    assert "does not serve" in entry.result
    await models.stop("big", entry)
    assert await models.settled() == ["ended after 0 nodes: the next did not leave in time"]


# ---- the autoscaler


class FakeTree:
    """The tree never changes."""

    def __init__(self, **changes: dict[str, Any]) -> None:
        self.followed = asyncio.Event()
        self._changes = changes

    async def now(self) -> Any:
        names = ("n1", "n2", "n3", "n4", "root", "root-big", "m1")
        fields = {name: {"oldest_wait": 0.0, **self._changes.get(name, {})} for name in names}
        return tree(**fields)

    async def follow(self) -> AsyncGenerator[Any]:
        self.followed.set()
        yield await self.now()
        await asyncio.Event().wait()


class FakeNodes:
    """Notes what nodes are told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, object]] = []

    async def tell(self, name: str, message: object) -> None:
        self.messages.append((name, message))


class FakeHosts:
    """One host with an agent, which runs all nodes of the tree, and accepts what it is asked."""

    async def request(self, name: str, message: object) -> None:
        """Nothing comes of it."""

    def __init__(self, refusal: ApiError | None = None) -> None:
        self.stopped = asyncio.Event()
        self.answered = asyncio.Event()
        self.asked = asyncio.Event()
        self._refusal = refusal

    def free_name(self, tree: Any, reserved: Collection[str]) -> str:
        return next(name for name in ("n5", "n6") if name not in reserved)

    async def start(self, host: str, body: StartBody) -> Started:
        self.asked.set()
        await self.answered.wait()
        if self._refusal is not None:
            raise self._refusal
        return Started(host=host, node=body.name or "", parent="n1")

    async def stop(self, host: str, name: str) -> None:
        self.stopped.set()

    def states(self) -> dict[str, HostState]:
        return {"here": host("here", *map(started, ("n1", "n2", "n3", "n4")), max_nodes=9)}


async def test_a_node_whose_end_is_called_off_takes_jobs_again(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.store_rule("tiny", Rule(least=1, most=1, target_wait=1.0, cooldown=0.0))
    await scaled.put(scaled_node("n3"))
    still, nodes, hosts = FakeTree(), FakeNodes(), FakeHosts()
    autoscaler = Autoscaler(cast(Any, still), cast(Any, hosts), cast(Any, nodes))
    async with asyncio.timeout(30):
        await autoscaler.look(BrokerOverview(process="api"))
        await still.followed.wait()
        await autoscaler.look(BrokerOverview(process="api", problem="does not answer"))
        assert len(nodes.messages) == 1, "an unreadable broker calls nothing off"
        await autoscaler.stop()
    (name, drain), (again, resume) = nodes.messages
    assert (name, type(drain), type(resume)) == (again, Drain, Resume)
    assert await scaled.stored() == [scaled_node("n3")]


async def test_the_next_recorder_ends_what_a_killed_one_was_ending(user: User) -> None:
    await store.store_rule("tiny", Rule(least=1, most=9, target_wait=1.0, cooldown=60.0))
    left = replace(scaled_node("n4"), leaving=True)
    await scaled.put(left)
    trees, nodes, hosts = FakeTree(n4={"state": "drained"}), FakeNodes(), FakeHosts()
    autoscaler = Autoscaler(cast(Any, trees), cast(Any, hosts), cast(Any, nodes))
    async with asyncio.timeout(30):
        await autoscaler.look(BrokerOverview(process="api"))
        await hosts.stopped.wait()
        await autoscaler.stop()
    assert [(name, type(message)) for name, message in nodes.messages] == [("n4", Drain)]


async def grow(hosts: FakeHosts) -> Autoscaler:
    """An autoscaler that has asked a host for a fifth node."""
    await scaled.remove([node.name for node in await scaled.stored()])
    await store.store_rule("tiny", Rule(least=9, most=9, target_wait=1.0, cooldown=0.0))
    autoscaler = Autoscaler(cast(Any, FakeTree()), cast(Any, hosts), cast(Any, FakeNodes()))
    await autoscaler.look(BrokerOverview(process="api"))
    await hosts.asked.wait()
    return autoscaler


async def test_a_node_is_stored_before_its_host_is_asked(user: User) -> None:
    hosts = FakeHosts()
    async with asyncio.timeout(30):
        autoscaler = await grow(hosts)
        await autoscaler.look(BrokerOverview(process="api"))
        await autoscaler.stop()  # as when the process is killed
    assert await scaled.stored() == [scaled_node("n5")]


@pytest.mark.parametrize(("status", "names"), [(400, []), (503, ["n5"])])
async def test_a_node_that_its_host_refuses_is_nobodys(
    user: User, status: int, names: list[str]
) -> None:
    """Without an answer the host may start it."""
    hosts = FakeHosts(ApiError(status, "no room", code="refused"))
    async with asyncio.timeout(30):
        autoscaler = await grow(hosts)
        hosts.answered.set()
        await until(lambda: not autoscaler._models["tiny"].changes)
    assert [node.name for node in await scaled.stored()] == names
    await autoscaler.stop()


async def test_a_change_that_breaks_is_reported(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(node: ScaledNode) -> None:
        raise DatabaseError("the disk is full")

    hosts = FakeHosts()
    monkeypatch.setattr(scaled, "put", fail)
    await store.store_rule("tiny", Rule(least=9, most=9, target_wait=1.0, cooldown=0.0))
    autoscaler = Autoscaler(cast(Any, FakeTree()), cast(Any, hosts), cast(Any, FakeNodes()))
    with capture_logs() as lines:
        async with asyncio.timeout(30):
            await autoscaler.look(BrokerOverview(process="api"))
            await until(lambda: not autoscaler._models["tiny"].changes)
    await autoscaler.stop()
    assert "a change of the autoscaler failed" in [line["event"] for line in lines]
