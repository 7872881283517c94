"""What is measured: one user beside another's flood, and two floods beside each other. An instance for each."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from bench import cpu
from bench.fair import service, users
from bench.fair.asking import Question, Track
from bench.fair.estimates import Estimate, estimates
from bench.fair.users import Flood

LIGHT, HEAVY = "light", "heavy"
_CALM = 2.0  # seconds of two floods before their tokens are counted
_WARM_UP = 5  # unmeasured questions
_ONSET_SECONDS = 120.0  # no flood takes longer to be taken in, unless something is broken


@dataclass(frozen=True)
class Settings:
    """What was asked for. `tokens`: of an answer, `token_delay` seconds each; `questions` of the light user with a
    `pause` (from, to) between two; `flood`: requests of the heavy one in the service at any time; `cap`: jobs of one
    user that run at once, where there is such a cap; `window`: seconds for which two floods are compared.
    """

    nodes: int
    slots: int
    tokens: int
    token_delay: float
    questions: int
    pause: tuple[float, float]
    flood: int
    cap: int
    window: float
    seed: int

    @property
    def service_seconds(self) -> float:
        """How long an answer of the light user's length takes where nothing is waited for."""
        return self.tokens * self.token_delay

    def up(self) -> list[str]:
        """The options of `canopy up`."""
        return [
            "--nodes",
            str(self.nodes),
            "--slots",
            str(self.slots),
            "--token-delay",
            str(self.token_delay),
        ]


@dataclass(frozen=True)
class Beside:
    """The light user beside a flood. `capped`: with a cap a user; `flex`: the flood in class batch."""

    name: str
    policy: str = "hold-high"
    flood: bool = True
    capped: bool = False
    flex: bool = False


@dataclass
class Found:
    """What came of it, until `ended`. `onset`: what the light user asked while the flood's first requests were being
    taken in, which took `onset_seconds`; `light`: after that. `least_waiting`: of the flood's requests, when the light
    user asked; `root`: what the root says of its own estimates. Processor time by process: `onset_cpu` in seconds until
    the flood was in; `cpu` in seconds a second after that.
    """

    scenario: Beside
    light: list[Track]
    ended: float
    flood: list[Track] = field(default_factory=list)
    onset: list[Track] = field(default_factory=list)
    onset_seconds: float = 0.0
    least_waiting: int = 0
    root: dict[str, float] = field(default_factory=dict)
    onset_cpu: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def firsts(self) -> list[float]:
        """Seconds to the light user's first tokens."""
        return self._firsts(self.light)

    @property
    def onset_firsts(self) -> list[float]:
        """The same, of those that were asked at the onset."""
        return self._firsts(self.onset)

    def _firsts(self, tracks: list[Track]) -> list[float]:
        """Who has none waited at least until the end."""
        return [
            (self.ended if track.first is None else track.first) - track.sent for track in tracks
        ]

    @property
    def estimates(self) -> list[Estimate]:
        """What the flood was told, against what came."""
        return estimates(self.flood)


@dataclass(frozen=True)
class Shares:
    """Two users who flood, with answers of these lengths and these shares."""

    name: str
    tokens: tuple[int, int]
    shares: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Shared:
    """Tokens and requests that each of the two got while both had work."""

    scenario: Shares
    tokens: tuple[int, int]
    begun: tuple[int, int]
    least_waiting: int


async def beside(scenario: Beside, settings: Settings) -> Found:
    """Raises NotStarted, users.Refused, OSError, httpx.HTTPError."""
    environment = _environment(settings.flood)
    environment |= {"CANOPY_USER_JOBS": str(settings.cap)} if scenario.capped else {}
    options = [*settings.up(), "--policy", scenario.policy]
    async with service.running(options, environment, {LIGHT: 1.0, HEAVY: 1.0}) as canopy:
        question = Question(canopy.keys[LIGHT], settings.tokens)
        dice = random.Random(f"{settings.seed}/{LIGHT}")
        ask = partial(users.now_and_then, canopy.port, question, settings.pause, dice)
        await ask(lambda asked: asked < _WARM_UP)
        if not scenario.flood:
            light = await ask(lambda asked: asked < settings.questions)
            return Found(scenario, light, time.perf_counter())
        lengths = random.Random(f"{settings.seed}/{HEAVY}")
        length = partial(_about, settings.tokens, lengths)
        flood = Flood(canopy.port, canopy.keys[HEAVY], settings.flood, length, flex=scenario.flex)
        waiting: list[int] = []

        def more(asked: int) -> bool:
            waiting.append(flood.waiting)
            return asked < settings.questions

        meter = cpu.Meter(canopy.pids)
        began, before = time.perf_counter(), meter.read()
        async with flood.flowing():
            onset = await ask(
                lambda _asked: (
                    not flood.taken_in.is_set() and time.perf_counter() < began + _ONSET_SECONDS
                )
            )
            since, between = time.perf_counter(), meter.read()
            light = await ask(more)
            ended, after = time.perf_counter(), meter.read()
            root = await canopy.root()
        taken_in = max(track.accepted or ended for track in flood.tracks[: settings.flood])
        return Found(
            scenario, light, ended, flood.tracks, onset, taken_in - began, min(waiting), root,
            onset_cpu=cpu.spent(before, between),
            cpu={name: seconds / (ended - since) for name, seconds in cpu.spent(between, after).items()},
        )  # fmt: skip


async def shared(scenario: Shares, settings: Settings) -> Shared:
    """Raises as `beside` does."""
    names = ("one", "two")
    size = max(settings.flood // 5, 4 * settings.nodes * settings.slots)
    shares: Mapping[str, float] = dict(zip(names, scenario.shares, strict=True))
    async with service.running(settings.up(), _environment(2 * size), shares) as canopy:
        floods = [
            Flood(canopy.port, canopy.keys[name], size, lambda tokens=tokens: tokens)  # type: ignore[misc]
            for name, tokens in zip(names, scenario.tokens, strict=True)
        ]
        least = size
        async with floods[0].flowing(), floods[1].flowing():
            async with asyncio.timeout(_ONSET_SECONDS):
                await asyncio.gather(*(flood.taken_in.wait() for flood in floods))
            await asyncio.sleep(_CALM)
            begin = time.perf_counter()
            while (now := time.perf_counter()) < begin + settings.window:
                least = min(least, *(flood.waiting for flood in floods))
                await asyncio.sleep(min(1.0, begin + settings.window - now))
            end = time.perf_counter()
    tokens, begun = (
        [count(flood, begin, end) for flood in floods] for count in (Flood.tokens_between, _begun)
    )
    return Shared(scenario, (tokens[0], tokens[1]), (begun[0], begun[1]), least)


def _environment(jobs: int) -> dict[str, str]:
    return {"CANOPY_BACKLOG": str(2 * jobs + 1000)}


def _about(tokens: int, dice: random.Random) -> int:
    """Lengths differ, so that slots do not become free all at once."""
    return dice.randint(max(1, tokens // 2), max(1, tokens * 3 // 2))


def _begun(flood: Flood, begin: float, end: float) -> int:
    return sum(track.first is not None and begin <= track.first < end for track in flood.tracks)
