"""What became of each request. Pure.

Every word that a user asks for differs from every other, so that repeated and missing text is seen
as what it is. Moments are those of `time.monotonic`.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

SHORT_SILENCE = 0.25  # seconds without new text that are not recorded
IDLE_CLOSED = 1.0  # a connection that ends so soon after a request was idle: it took no request
_REASON = 160  # characters of a refusal that distinguish it from others
_BEFORE_FAULT = 0.5  # seconds by which a silence may begin before the fault that caused it


class Ending(StrEnum):
    """How a request ended for its user."""

    ANSWERED = "answered"  # once, with exactly the right text
    CANCELLED = "cancelled"
    REFUSED = "refused"  # before it was accepted
    BROKEN = "broken off"  # its API process was killed, and without a key nothing leads back to it
    ERROR = "error"  # although it had been accepted
    LOST = "lost"
    REPEATED = "repeated"  # text twice
    MISSING = "missing"  # text left out
    MISCOUNTED = "usage"  # the answer counts its tokens wrong


FAILURES = (Ending.ERROR, Ending.LOST, Ending.REPEATED, Ending.MISSING, Ending.MISCOUNTED)


@dataclass(slots=True)
class Request:
    """One question of one user, retries with the same key included."""

    kind: str
    expected: str
    began: float
    accepted: float | None = None  # when an answer began
    ended: float | None = None
    ending: Ending | None = None
    note: str = ""
    text: str = ""  # of the answer, in its last try
    tokens: int | None = None  # the answer's own count
    ids: list[str] = field(default_factory=list)  # request ids of the answers
    retries: int = 0
    silences: list[tuple[float, float]] = field(default_factory=list)  # of its running stream
    first_text: float | None = None
    last_text: float | None = None

    def accept(self, at: float, request_id: str | None = None) -> None:
        self.accepted = self.accepted or at
        if request_id and request_id not in self.ids:
            self.ids.append(request_id)

    def receive(self, at: float, text: str) -> None:
        self.text += text
        self._mark(at)

    def end(self, at: float, ending: Ending, note: str = "") -> None:
        """A stream that is lost was silent until then."""
        if ending is Ending.LOST and self.last_text is not None:
            self._mark(at)
        self.ended, self.ending, self.note = at, ending, note

    def open_within(self, began: float, ended: float) -> bool:
        """Whether the service had it at some moment of that time."""
        if self.accepted is None:
            return False
        return self.accepted <= ended and (self.ended is None or self.ended >= began)

    def longest_silence(self, began: float, ended: float) -> float:
        """The longest of the silences that began in that time; 0 for none."""
        longest = 0.0
        for first, last in self.silences:
            if began - _BEFORE_FAULT <= first <= ended:
                longest = max(longest, last - first)
        return longest

    def wrong_text(self, *, complete: bool) -> Ending | None:
        """What is wrong with the text; None if it is right, or begins rightly if not `complete`."""
        tokens = self.tokens if complete else None
        return compare(self.expected, self.text, tokens, complete=complete)

    def _mark(self, at: float) -> None:
        self.first_text = self.first_text or at
        if self.last_text is not None and at - self.last_text > SHORT_SILENCE:
            self.silences.append((self.last_text, at))
        self.last_text = at


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
    refusals: Counter[str] = field(default_factory=Counter)  # by reason, retries included

    def refuse(self, reason: str) -> None:
        """A try was refused, or reached nobody."""
        self.refusals[re.sub(r"[0-9a-f]{16,}|\d+\.\d+", "…", reason)[:_REASON]] += 1

    def open(self, kind: str, expected: str, at: float) -> Request:
        request = Request(kind, expected, at)
        self.requests.append(request)
        return request

    def failures(self) -> list[Request]:
        """Requests that broke a promise, and those that never ended."""
        return [
            request
            for request in self.requests
            if request.ending is None or request.ending in FAILURES
        ]

    def count(self, ending: Ending) -> int:
        return sum(request.ending is ending for request in self.requests)

    def judge_broken(self, request: Request, at: float) -> Ending:
        """What it means that the connection broke at `at`.

        Before an answer began it is a refusal if the API process died or an idle connection was
        being closed. After that, only the death of the API process excuses it.
        """
        deaths = self.api_deaths
        api_died = any(death.began <= at and request.began <= death.ended for death in deaths)
        if request.accepted is not None:
            return Ending.BROKEN if api_died else Ending.LOST
        if api_died or at - request.began < IDLE_CLOSED:
            return Ending.REFUSED
        return Ending.LOST


def compare(
    expected: str, text: str, tokens: int | None = None, *, complete: bool = True
) -> Ending | None:
    """What is wrong with a text; None if it is right.

    `complete`: all of `expected` must be there, not only its beginning. `tokens`: the answer's own
    count, None if there is none.
    """
    if text == expected and tokens not in (None, len(expected.split(" "))):
        return Ending.MISCOUNTED
    if text == expected or (not complete and expected.startswith(text)):
        return None
    words, right = text.split(" "), expected.split(" ")
    same = 0
    while same < min(len(words), len(right)) and words[same] == right[same]:
        same += 1
    if same == len(right) or (same < len(words) and words[same] in right[:same]):
        return Ending.REPEATED
    return Ending.MISSING


def numbered_words(tag: str, count: int) -> str:
    """`count` words, each unlike all others."""
    return " ".join(f"{tag}.{number}" for number in range(count))
