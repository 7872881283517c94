"""What became of each request. Pure. Moments are those of `time.monotonic`."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

SHORT_SILENCE = 0.25  # seconds without new text that are not recorded
IDLE_CLOSED = 1.0  # a connection that ends so soon after a request was idle: it took no request
_BEFORE_FAULT = 0.5  # seconds by which a silence may begin before the fault that caused it


class Ending(StrEnum):
    """How a request ended for its user."""

    ANSWERED = "answered"  # once, with exactly the right text
    CANCELLED = "cancelled"
    REFUSED = "refused"  # before it was accepted
    BROKEN = "broken off"  # its API process was killed, and without a key nothing leads back to it
    ERROR = "error"  # although it had been accepted
    LOST = "lost"
    WRONG = "wrong"  # text twice or left out, or its tokens counted wrong


FAILURES = (Ending.ERROR, Ending.LOST, Ending.WRONG)


@dataclass(slots=True)
class Request:
    """One question of one user, retries with the same key included."""

    kind: str
    expected: str
    began: float
    accepted: float | None = None  # when an answer began
    ended: float = float("inf")
    ending: Ending | None = None
    note: str = ""
    text: str = ""  # of the answer, in its last try
    request_id: str = ""
    silences: list[tuple[float, float]] = field(default_factory=list)  # of its running stream
    last_text: float | None = None

    def receive(self, at: float, text: str) -> None:
        self.text += text
        if self.last_text is not None and at - self.last_text > SHORT_SILENCE:
            self.silences.append((self.last_text, at))
        self.last_text = at

    def end(self, at: float, ending: Ending, note: str = "") -> None:
        """A stream that is lost was silent until then."""
        if ending is Ending.LOST and self.last_text is not None:
            self.receive(at, "")
        self.ended, self.ending, self.note = at, ending, note

    def is_right(self, *, complete: bool) -> bool:
        """Whether the text is, or begins rightly if not `complete`."""
        return self.text == self.expected or (not complete and self.expected.startswith(self.text))


@dataclass(slots=True)
class ApiDeath:
    """The API process was killed or asked to end; until `ended` it may still be leaving."""

    began: float
    ended: float = float("inf")


@dataclass(slots=True)
class Ledger:
    """All requests, and when API processes ended under them."""

    requests: list[Request] = field(default_factory=list)
    api_deaths: list[ApiDeath] = field(default_factory=list)

    def open(self, kind: str, expected: str, at: float) -> Request:
        request = Request(kind, expected, at)
        self.requests.append(request)
        return request

    def endings(self) -> dict[str, int]:
        """How many requests ended in each way."""
        counts = Counter(request.ending for request in self.requests)
        return {str(ending): counts[ending] for ending in Ending}

    def longest_silence(self, began: float, ended: float) -> float:
        """Of any running stream, in seconds, among those that began in that time."""
        longest = 0.0
        for request in self.requests:
            for first, last in request.silences:
                if began - _BEFORE_FAULT <= first <= ended:
                    longest = max(longest, last - first)
        return longest

    def judge_broken(self, request: Request, at: float) -> Ending:
        """What it means that the connection broke at `at`; a dead API process excuses it."""
        deaths = self.api_deaths
        api_died = any(death.began <= at and request.began <= death.ended for death in deaths)
        if request.accepted is not None:
            return Ending.BROKEN if api_died else Ending.LOST
        if api_died or at - request.began < IDLE_CLOSED:
            return Ending.REFUSED
        return Ending.LOST


def numbered_words(tag: str, count: int) -> str:
    """`count` words, each unlike all others, so that repeated and missing text is seen."""
    return " ".join(f"{tag}.{number}" for number in range(count))
