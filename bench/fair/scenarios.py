"""What is measured: a light user beside a flood, and two floods beside each other.

Each scenario has an instance of its own, with users of its own.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from bench import harness, streaming
from bench.fair.users import Flood, ask_at_intervals
from bench.harness import Instance
from bench.streaming import StreamClient

LIGHT, HEAVY = "light", "heavy"
_PAUSE = (0.5, 1.0)  # seconds between two questions of the light user
NODES, SLOTS = 2, 4  # workers, and slots of each
TOKENS, TOKEN_DELAY = 20, 0.05  # of an answer; seconds each
SERVICE_SECONDS = TOKENS * TOKEN_DELAY
CAP = 6  # jobs of a user that run at once, in the scenario with a cap
_WINDOW = 20.0  # seconds for which two floods are compared
_SETTLE = 2.0  # seconds of two floods before their tokens are counted
_WARM_UP = 5  # unmeasured questions
_ADMISSION_SECONDS = 120.0  # by then a flood is admitted, unless something is broken


@dataclass(frozen=True)
class Settings:
    """The options of the command; see there."""

    questions: int
    flood: int
    seed: int


@dataclass(frozen=True)
class BesideFlood:
    """The light user's scenario. `capped`: with a cap a user; `flex`: the flood in class batch."""

    name: str
    policy: str = "hold-high"
    flood: bool = True
    capped: bool = False
    flex: bool = False


@dataclass
class LightResult:
    """What came of it, until `ended`.

    `least_waiting`: the fewest requests of the flood that were waiting when the light user asked.
    """

    scenario: BesideFlood
    light: list[StreamClient]
    ended: float
    flood: list[StreamClient] = field(default_factory=list)
    least_waiting: int = 0

    @property
    def ttfts(self) -> list[float]:
        """Seconds to the light user's first tokens; without one, at least until the end."""
        waits = []
        for client in self.light:
            waits.append((client.timeline.first or self.ended) - client.timeline.sent)
        return waits


@dataclass(frozen=True)
class TwoFloods:
    """Two users who flood, with answers of these lengths and these shares."""

    name: str
    tokens: tuple[int, int]
    shares: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class SharesResult:
    """Tokens and requests that each of the two got while both had work."""

    scenario: TwoFloods
    tokens: tuple[int, ...]
    begun: tuple[int, ...]
    least_waiting: int


async def beside_flood(scenario: BesideFlood, settings: Settings) -> LightResult:
    """Raises NotStarted, RequestFailed, OSError."""
    cap = {"CANOPY_USER_JOBS": str(CAP)} if scenario.capped else {}
    users = {LIGHT: 1.0, HEAVY: 1.0}
    with _service(scenario.policy, settings.flood, cap, users) as (canopy, keys):
        question = streaming.chat(canopy.port, keys[LIGHT], canopy.model, TOKENS)
        rng = random.Random(f"{settings.seed}/{LIGHT}")
        ask = partial(ask_at_intervals, canopy.port, question, _PAUSE, rng)
        await ask(lambda sent: sent < _WARM_UP)
        if not scenario.flood:
            light = await ask(lambda sent: sent < settings.questions)
            return LightResult(scenario, light, time.perf_counter())
        flood = _flood(canopy, keys[HEAVY], settings, flex=scenario.flex)
        waiting: list[int] = []

        def beside(sent: int) -> bool:
            waiting.append(flood.waiting)
            return sent < settings.questions

        async with flood.flowing():
            async with asyncio.timeout(_ADMISSION_SECONDS):
                await flood.admitted.wait()
            light = await ask(beside)
            ended = time.perf_counter()
    return LightResult(scenario, light, ended, flood.clients, min(waiting))


async def two_floods(scenario: TwoFloods, settings: Settings) -> SharesResult:
    size = max(settings.flood // 5, 4 * NODES * SLOTS)
    users = dict(zip(("one", "two"), scenario.shares, strict=True))
    with _service("hold-high", 2 * size, {}, users) as (canopy, keys):
        floods = []
        for key, tokens in zip(keys.values(), scenario.tokens, strict=True):
            request = streaming.chat(canopy.port, key, canopy.model, tokens)
            floods.append(Flood(canopy.port, size, lambda request=request: request))  # type: ignore[misc]
        least = size
        async with floods[0].flowing(), floods[1].flowing():
            async with asyncio.timeout(_ADMISSION_SECONDS):
                await asyncio.gather(*(flood.admitted.wait() for flood in floods))
            await asyncio.sleep(_SETTLE)
            begin = now = time.perf_counter()
            while now < begin + _WINDOW:
                least = min(least, *(flood.waiting for flood in floods))
                await asyncio.sleep(min(1.0, begin + _WINDOW - now))
                now = time.perf_counter()
    tokens_got = tuple(flood.tokens_within(begin, now) for flood in floods)
    begun = tuple(flood.begun_within(begin, now) for flood in floods)
    return SharesResult(scenario, tokens_got, begun, least)


@contextlib.contextmanager
def _service(
    policy: str,
    jobs: int,
    environment: Mapping[str, str],
    users: Mapping[str, float],
) -> Iterator[tuple[Instance, dict[str, str]]]:
    """An instance whose backlog holds so many jobs, and the API keys of its users by name."""
    options = ["--engine", "echo", "--nodes", str(NODES), "--slots", str(SLOTS)]
    options += ["--token-delay", str(TOKEN_DELAY), "--policy", policy]
    backlog = {"CANOPY_BACKLOG": str(2 * jobs + 1000)}
    with harness.running(*options, environment={**environment, **backlog}) as canopy:
        words = [f"{name}={share}" for name, share in users.items()]
        keys = canopy.run_module("bench.fair.accounts", *words).split()
        yield canopy, dict(zip(users, keys, strict=True))


def _flood(canopy: Instance, key: str, settings: Settings, *, flex: bool) -> Flood:
    """Answers of different lengths, so that slots do not become free all at once."""
    rng = random.Random(f"{settings.seed}/{HEAVY}")
    fields = {"service_tier": "flex"} if flex else {}

    def make_request() -> bytes:
        tokens = rng.randint(max(1, TOKENS // 2), max(1, TOKENS * 3 // 2))
        return streaming.chat(canopy.port, key, canopy.model, tokens, **fields)

    return Flood(canopy.port, settings.flood, make_request)
