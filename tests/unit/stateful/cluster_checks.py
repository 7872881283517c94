"""What holds of a cluster after every event, and what must have become of it in the end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, invariant

from broker.encoding import decode, encode
from broker.errors import DecodeError
from broker.wire import MAX_ATTEMPTS, Failed, Finished, Job, Resume
from tests.unit.stateful.clock import JumpingLoop
from tests.unit.stateful.world import Request, World
from topology import names

T = TypeVar("T")

ROOTS = ("root a", "root b")
HEALING_SECONDS = 120.0


class CheckedCluster(RuleBasedStateMachine):
    """A cluster without events: it is checked after each, and healed and checked at the end."""

    all_come_back: bool

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.garbage = 0
        self.runner = asyncio.Runner(loop_factory=JumpingLoop)
        self.world: World
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.world = await World().__aenter__()
        self.orphans = asyncio.create_task(self.world.look_after_orphans(), name="orphans")

    def do(self, work: Coroutine[Any, Any, T], pause: float = 0.0) -> T:
        async def work_and_wait() -> T:
            done = await work
            await asyncio.sleep(pause)
            return done

        try:
            return self.runner.run(work_and_wait())
        except BaseException:
            self.broken = True
            raise

    # ---- what always holds

    @invariant()
    def nothing_wrong(self) -> None:
        try:
            self._check()
        except BaseException:
            self.broken = True
            raise

    def _check(self) -> None:
        assert not self.world.wrong, self.world.wrong
        for request in self.world.requests.values():
            stream = request.stream
            assert request.truth.startswith(request.text), (request.truth, request.text)
            assert request.truth.startswith(stream.text), (request.truth, stream.text)
            assert len(stream.faults) <= request.blame, (stream.request_id, stream.faults)
        for key in self.world.living(roots=False):
            if self.world.nodes[key].jobs.run_lock._writer_active:
                assert len(self.world.runs(key)) <= 1, f"not alone on {key}"

    # ---- the end

    def teardown(self) -> None:
        try:
            if not self.broken:
                self.do(self._heal())
                self._check_ends()
                self.do(self._end())
        finally:
            self._close()

    async def _heal(self) -> None:
        world = self.world
        for session in (world.client_session, *world.sessions.values()):
            session.alarm(False)
        await world.have_left()
        if not world.living(others=False):
            world.launch(ROOTS[0], None)
        for name, home in list(world.homes.items()):
            if self.all_come_back and name not in world.living():
                world.launch(name, home)
        world.launch("n9", "root")
        await self._until_quiet()

    async def _until_quiet(self) -> None:
        """Revives everything and waits until each stream has ended and nothing is left."""
        for _ in range(int(HEALING_SECONDS / 0.5)):
            for key in self.world.living():
                self.world.broker.put("", names.inbox(self.world.nodes[key].name), encode(Resume()))
                if key not in ROOTS:
                    self._wake(key)
            if (
                all(request.reading.done() for request in self.world.requests.values())
                and not self.world.unsettled()
            ):
                return
            await asyncio.sleep(0.5)

    def _wake(self, key: str) -> None:
        puppet = self.world.puppet(key)
        if not puppet.eager:
            puppet.eager = puppet.well = True
            puppet.hanging = 0.0
            for run in puppet.runs:
                run.finish()

    def _check_ends(self) -> None:
        self._check()
        for request in self.world.requests.values():
            assert request.reading.done(), (
                f"{request.stream.request_id} has no end: {self._places(request)}"
            )
            if not request.left:
                self._check_end(request)
        assert not self.world.unsettled(), (self.world.unsettled(), self.world.edges())
        self._check_dead()

    def _places(self, request: Request) -> str:
        return f"{self.world.unsettled()}, {self.world.edges()}, {request.frames}"

    def _check_end(self, request: Request) -> None:
        assert len(request.ends) == 1, request.ends
        end = request.frames[-1]
        match end:
            case Finished(reason="cancelled"):
                assert request.cancelled
            case Failed(code="expired"):
                assert request.stream.expires is not None
            case Failed(code="given_up"):
                assert len(request.stream.faults) >= MAX_ATTEMPTS
            case _:
                assert isinstance(end, Finished), end
                assert request.text == request.truth
                assert end.completion_tokens == len(request.truth.split()), end

    def _check_dead(self) -> None:
        letters = [message.body for message in self.world.broker.queues[names.DEAD_QUEUE].ready]
        assert letters.count(b"not a job") >= self.garbage
        for body in letters:
            if body != b"not a job":
                self._check_given_up(body)

    def _check_given_up(self, body: bytes) -> None:
        try:
            request = self.world.requests[decode(body, Job).request_id]
        except DecodeError:
            raise AssertionError(f"neither a job nor garbage: {body!r}") from None
        assert request.left or isinstance(request.frames[-1], Failed)

    async def _end(self) -> None:
        self.orphans.cancel()
        await asyncio.gather(self.orphans, return_exceptions=True)
        await self.world.end_all()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, tasks

    def _close(self) -> None:
        try:
            self.runner.run(self.world.aclose())
        finally:
            self.runner.close()
