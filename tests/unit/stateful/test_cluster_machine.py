"""A whole cluster through random histories of deaths, returns and repeated messages.

Every reader gets the one true answer once, or the reason why not, and nothing is left anywhere.
"""

import asyncio
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from broker.encoding import encode
from broker.errors import ConnectionLost, Unavailable
from broker.wire import AnyControl, Attach, Drain, Resume
from tests.unit.stateful.cluster_checks import ROOTS, CheckedCluster
from tests.unit.stateful.hunt import histories
from tests.unit.stateful.world import Request
from topology import names
from topology.dispatch import HoldHigh, Paper, Policy

NODES = ("n1", "n2", "n3", "n4", "n5")
REQUESTS = 12

pick = st.integers(0, 11)  # one of those that are there
pauses = st.sampled_from(
    [0.2, 0.0, 0.0001, 0.0003, 0.001, 0.01, 3.0, 10.0]
)  # seconds; a turn of the loop is 0.0001


class ClusterMachine(CheckedCluster):
    """Rules are events in a cluster; after each, the cluster runs by itself for a while."""

    def request(self, pick: int) -> Request:
        return list(self.world.requests.values())[pick % len(self.world.requests)]

    def living(self, pick: int, **kinds: bool) -> str:
        keys = self.world.living(**kinds)
        return keys[pick % len(keys)]

    # ---- processes

    @initialize(
        shape=st.sampled_from(["one", "flat", "deep", "none"]),
        slots=st.integers(1, 2),
        count=st.integers(0, 6),
        back=st.booleans(),
        policy=st.sampled_from([HoldHigh, Paper]),
    )
    def begin(self, shape: str, slots: int, count: int, back: bool, policy: type[Policy]) -> None:
        self.world.policy = policy
        self.all_come_back = (
            back  # in the end, every node that has died; else a fresh one alone helps
        )
        self.do(self._begin(shape, slots), 0.2)
        self.do(self._submit(count, None), 0.2)

    async def _begin(self, shape: str, slots: int) -> None:
        self.world.launch(ROOTS[0], None)
        await asyncio.sleep(0.1)
        parents = {
            "none": [],
            "one": ["root"],
            "flat": ["root"] * 4,
            "deep": ["root", "n1", "n1", "n2", "n4"],
        }
        for name, parent in zip(NODES, parents[shape], strict=False):
            self.world.launch(name, parent, slots)
            await asyncio.sleep(0.1)

    @rule(
        name=st.sampled_from(NODES),
        parent=st.sampled_from(["root", *NODES]),
        slots=st.integers(1, 2),
        pause=pauses,
    )
    def start(self, name: str, parent: str, slots: int, pause: float) -> None:
        if name not in self.world.living() and name != parent:
            self.do(self._launch(name, parent, slots), pause)

    async def _launch(self, key: str, parent: str | None, slots: int = 1) -> None:
        self.world.launch(key, parent, slots)

    @rule(name=st.sampled_from(NODES), pause=pauses)
    def start_again(self, name: str, pause: float) -> None:
        if name in self.world.homes and name not in self.world.living():
            self.do(self._launch(name, self.world.homes[name]), pause)

    @rule(key=st.sampled_from(ROOTS), pause=pauses)
    def start_a_root(self, key: str, pause: float) -> None:
        if key not in self.world.living():
            self.do(self._launch(key, None), pause)

    @precondition(lambda self: self.world.living())
    @rule(pick=pick, pause=pauses)
    def kill(self, pick: int, pause: float) -> None:
        key = self.living(pick)
        self.world.blame(key)
        self.do(self.world.kill(key), pause)

    @precondition(lambda self: self.world.runs())
    @rule(pick=pick, pause=pauses, again=st.booleans())
    def kill_one_that_runs(self, pick: int, pause: float, again: bool) -> None:
        keys = [key for key in self.world.living(roots=False) if self.world.puppet(key).runs]
        key = keys[pick % len(keys)]
        self.world.blame(key)
        self.do(self.world.kill(key), pause)
        if again:
            self.do(self._launch(key, self.world.homes[key]), pause)

    @precondition(lambda self: self.world.living())
    @rule(pick=pick, pause=pauses)
    def leave(self, pick: int, pause: float) -> None:
        self.do(self._leave(self.living(pick)), pause)

    async def _leave(self, key: str) -> None:
        self.world.leave(key)

    @precondition(lambda self: self.world.living())
    @rule(pick=pick, pause=pauses)
    def lose_session_of_node(self, pick: int, pause: float) -> None:
        key = self.living(pick)
        if key in self.world.sessions:
            self.world.blame(key)
            self.do(self._lose(self.world.sessions[key]), pause)

    @rule(pause=pauses)
    def lose_session_of_client(self, pause: float) -> None:
        self.do(self._lose(self.world.client_session), pause)

    async def _lose(self, session: Any) -> None:
        session.lose(ConnectionLost("cut"))

    @rule(pick=pick, on=st.booleans(), pause=pauses)
    def alarm(self, pick: int, on: bool, pause: float) -> None:
        sessions = [
            self.world.client_session,
            *(self.world.sessions.get(key) for key in self.world.living()),
        ]
        self.do(self._alarm(sessions[pick % len(sessions)], on), pause)

    async def _alarm(self, session: Any, on: bool) -> None:
        if session is not None:
            session.alarm(on)

    # ---- engines

    @precondition(lambda self: self.world.runs())
    @rule(pick=pick, pause=pauses)
    def say(self, pick: int, pause: float) -> None:
        runs = self.world.runs()
        self.do(self._call(runs[pick % len(runs)].say), pause)

    @precondition(lambda self: self.world.runs())
    @rule(pick=pick, pause=pauses)
    def finish(self, pick: int, pause: float) -> None:
        runs = self.world.runs()
        self.do(self._call(runs[pick % len(runs)].finish), pause)

    async def _call(self, step: Any) -> None:
        step()

    @precondition(lambda self: self.world.runs())
    @rule(pick=pick, well=st.booleans(), pause=pauses)
    def engine_fails(self, pick: int, well: bool, pause: float) -> None:
        keys = [key for key in self.world.living(roots=False) if self.world.puppet(key).runs]
        key = keys[pick % len(keys)]
        self.world.blame(key)
        self.world.puppet(key).well = well
        self.do(self._call(self.world.puppet(key).fail), pause)

    @precondition(lambda self: self.world.living(roots=False))
    @rule(pick=pick, stuck=st.booleans(), pause=pauses)
    def engine_hangs(self, pick: int, stuck: bool, pause: float) -> None:
        key = self.living(pick, roots=False)
        self.world.puppet(key).stuck = stuck
        self.world.puppet(key).hanging = 99.0
        self.do(asyncio.sleep(2.0))
        self.world.blame(key)  # the watchdog looks three times, a second apart
        self.do(asyncio.sleep(2.0), pause)

    # ---- what people do

    @precondition(lambda self: len(self.world.requests) < REQUESTS)
    @rule(
        count=st.integers(1, 4),
        seconds=st.sampled_from([*[None] * 9, 0.0, 1.0, 20.0]),
        pause=pauses,
    )
    def submit(self, count: int, seconds: float | None, pause: float) -> None:
        self.do(self._submit(count, seconds), pause)

    async def _submit(self, count: int, seconds: float | None) -> None:
        for _ in range(count):
            try:
                await self.world.submit(f"r{len(self.world.requests)}", seconds)
            except Unavailable:
                assert not self.world.client.connected

    @precondition(lambda self: self.world.requests)
    @rule(pick=pick, reader=st.booleans(), pause=pauses)
    def cancel(self, pick: int, reader: bool, pause: float) -> None:
        request = self.request(pick)
        if reader:
            self.do(request.leave(), pause)
        else:
            request.cancelled = True
            self.do(
                self._call(lambda: self.world.client.cancel(request.stream.request_id, "")), pause
            )

    @precondition(lambda self: self.world.requests)
    @rule(pick=pick, node=st.sampled_from(["root", *NODES]), pause=pauses)
    def deliver_twice(self, pick: int, node: str, pause: float) -> None:
        self.do(self._call(lambda: self.world.repeat(self.request(pick), node)), pause)

    @rule(node=st.sampled_from(["root", *NODES]), pause=pauses)
    def send_garbage(self, node: str, pause: float) -> None:
        if names.node(node) in self.world.broker.queues:
            self.garbage += 1
            self.do(
                self._call(lambda: self.world.broker.put("", names.node(node), b"not a job")), pause
            )

    @rule(node=st.sampled_from(["root", *NODES]), resume=st.booleans(), pause=pauses)
    def drain(self, node: str, resume: bool, pause: float) -> None:
        self.do(self._control(node, Resume() if resume else Drain()), pause)

    @rule(
        node=st.sampled_from(["root", *NODES]),
        parent=st.sampled_from(["root", "nobody", *NODES]),
        for_good=st.booleans(),
        pause=pauses,
    )
    def attach(self, node: str, parent: str, for_good: bool, pause: float) -> None:
        self.do(self._control(node, Attach(parent=parent, for_good=for_good)), pause)

    async def _control(self, node: str, message: AnyControl) -> None:
        self.world.broker.put("", names.inbox(node), encode(message))

    @rule(seconds=st.sampled_from([1.0, 10.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))


ClusterMachine.TestCase.settings = histories(60)
TestClusterMachine = ClusterMachine.TestCase
