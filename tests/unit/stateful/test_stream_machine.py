"""A stream under random frames: its reader gets each token once, and one end."""

import asyncio

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.client import Client
from broker.stream import Stream
from broker.wire import (
    NO_RUN,
    AnyFrame,
    Delta,
    Failed,
    Finished,
    Interrupted,
    Job,
    ResumeRequest,
    Start,
    Waiting,
)
from tests.unit.stateful.hunt import histories

TOKENS = [f"{number} " for number in range(20)]

pick = st.integers(0, 100)


class StreamMachine(RuleBasedStateMachine):
    """Rules play the nodes, which send frames in order; which of them arrive is random."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runner.run(self._open())
        self.sent: list[AnyFrame] = []  # of the newest attempt, all that its run has said
        self.arrived = 0  # of them
        self.said = 0  # tokens, by the newest run
        self.stale: list[AnyFrame] = []  # of older attempts
        self.incarnation = 0  # of the newest run
        self.begun = False  # the reader knows that the newest run has begun and has not ended
        self.faults = 0
        self.read: list[AnyFrame] = []
        self.forgotten = 0

    async def _open(self) -> None:
        job = Job(request_id="a", model="m", reply_to="q", created=0.0, prompt="p")
        self.client = Client("not connected")
        self.stream = Stream(job, self._forget)
        self.client._open(self.stream)

    def _forget(self, stream: Stream) -> None:
        self.forgotten += 1
        self.client._forget(stream)

    def push(self, frame: AnyFrame) -> None:
        self.runner.run(self._push(frame))

    async def _push(self, frame: AnyFrame) -> None:
        self.client._router.on_frame(frame)

    # ---- what a node does

    @property
    def over(self) -> bool:
        """The newest run says nothing more."""
        return bool(self.sent) and isinstance(self.sent[-1], Finished | Failed | Interrupted)

    def say(self, kind: type[AnyFrame], **fields: object) -> None:
        self.sent.append(
            kind(request_id="a", attempt=self.stream.attempt, seq=len(self.sent), **fields)
        )

    @precondition(lambda self: not self.sent and not self.stream.ended)
    @rule(incarnation=st.integers(1, 3))
    def begin(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.said = len(self.stream.text.split())
        self.say(Start, node="n", incarnation=str(incarnation))

    @precondition(lambda self: self.sent and not self.over and self.said < len(TOKENS))
    @rule(count=st.integers(1, 3))
    def compute(self, count: int) -> None:
        ids = range(self.said, min(self.said + count, len(TOKENS)))
        self.said += len(ids)
        self.say(
            Delta, text="".join(TOKENS[number] for number in ids), tokens=len(ids), ids=tuple(ids)
        )

    @precondition(lambda self: self.sent and not self.over)
    @rule(end=st.sampled_from(["finished", "failed", "interrupted", "fault"]))
    def end(self, end: str) -> None:
        match end:
            case "finished":
                self.say(Finished, reason="stop")
            case "failed":
                self.say(Failed, code="internal", message="a bug")
            case _:
                self.say(Interrupted, reason="out of memory", fault=end == "fault")

    # ---- what arrives

    @precondition(lambda self: self.arrived < len(self.sent))
    @rule(count=st.integers(1, 5))
    def arrive(self, count: int) -> None:
        for frame in self.sent[self.arrived : self.arrived + count]:
            ended = self.stream.ended
            self.push(frame)
            self.arrived += 1
            if isinstance(frame, Start):
                self.begun = True
            elif isinstance(frame, Interrupted) and not ended:
                self.begun = False
                self.faults += frame.fault

    @precondition(lambda self: self.arrived)
    @rule(pick=pick)
    def repeat(self, pick: int) -> None:
        self.push(self.sent[pick % self.arrived])

    @precondition(lambda self: len(self.sent) - self.arrived > 1 and not self.stream.ended)
    @rule(pick=pick)
    def lose_one(self, pick: int) -> None:
        later = self.sent[self.arrived + 1 :]
        assert not self.stream.push(later[pick % len(later)])

    @rule(reason=st.sampled_from(["every slot is busy", "no node is connected"]))
    def wait(self, reason: str) -> None:
        self.push(Waiting(request_id="a", attempt=1, seq=NO_RUN, node="n", reason=reason))

    @precondition(lambda self: not self.stream.ended)
    @rule(incarnation=st.integers(1, 3))
    def ask(self, incarnation: int) -> None:
        """A node has a slot for the restarted job."""
        lost = self.begun and incarnation != self.incarnation
        asking = ResumeRequest(
            request_id="a", seq=NO_RUN, node="n", incarnation=str(incarnation), number=incarnation
        )
        before = self.stream.attempt
        granted = self.stream.grant(asking)
        self.faults += lost
        assert granted.number == incarnation
        assert granted.attempt == before + 1
        assert (
            granted.delivered
            == "".join(TOKENS[number] for number in granted.delivered_ids)
            == self.stream.text
        )
        assert granted.faults == self.stream.faults
        self._next_attempt()

    @precondition(lambda self: not self.stream.ended)
    @rule()
    def start_over(self) -> None:
        again = self.stream.start_over()
        assert (again.attempt, again.delivered, again.restarted) == (
            self.stream.attempt,
            self.stream.text,
            False,
        )
        self._next_attempt()

    def _next_attempt(self) -> None:
        self.stale += self.sent
        self.sent, self.arrived, self.begun = [], 0, False

    @precondition(lambda self: self.stale)
    @rule(pick=pick)
    def arrive_late(self, pick: int) -> None:
        """A frame of an older attempt: of a run that does not know yet that another one goes on."""
        self.push(self.stale[pick % len(self.stale)])

    # ---- the reader

    @rule(count=st.integers(1, 5))
    def read_some(self, count: int) -> None:
        self.runner.run(self._read(count))

    async def _read(self, count: int) -> None:
        for _ in range(count):
            if not self.stream._frames and not self.stream._unread:
                return  # would wait, or has ended
            self.read.append(await anext(self.stream))

    # ---- what always holds

    @invariant()
    def one_text(self) -> None:
        known = "".join(TOKENS)
        assert known.startswith(self.stream.text)
        assert self.stream.text.startswith(self.read_text())
        assert len(self.stream.faults) == self.faults

    def read_text(self) -> str:
        deltas = [frame for frame in self.read if isinstance(frame, Delta)]
        assert [number for delta in deltas for number in delta.ids] == list(
            range(sum(each.tokens for each in deltas))
        )
        return "".join(delta.text for delta in deltas)

    @invariant()
    def one_end(self) -> None:
        assert self.forgotten == self.stream.ended
        ends = [
            place for place, frame in enumerate(self.read) if isinstance(frame, Finished | Failed)
        ]
        assert ends in ([], [len(self.read) - 1])

    def teardown(self) -> None:
        try:
            self.stream.fail("internal", "over")
            self.runner.run(self._read_all())
            assert self.read_text() == self.stream.text
            self.one_end()
            assert isinstance(self.read[-1], Finished | Failed)
        finally:
            self.runner.close()

    async def _read_all(self) -> None:
        async for frame in self.stream:
            self.read.append(frame)


StreamMachine.TestCase.settings = histories(120, steps=40)
TestStreamMachine = StreamMachine.TestCase
