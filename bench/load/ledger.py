"""What became of each request: pure records and their judgement.

Every word that a user asks for is unlike every other, so that a repetition and a gap are seen as what they are.
Moments are seconds of one monotonic clock.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

SHORT_SILENCE = 0.25  # seconds without new text that are not worth a note
_REASON = 160  # characters of a refusal that tell it from others
_STEP = 0.5  # seconds: the last text before a fault is so much older than the fault at most
IDLE_CLOSED = 1.0  # a kept-open connection that ends so soon after a request was idle: the request was not taken


class Ending(StrEnum):
    """How a request ended for its user. `ANSWERED`: once, with exactly the right text. `BROKEN`: the API process was
    killed under it, and without a key there is no way back to it. `TOLD`: with an error, after it had been accepted.
    `MISSING`: text was. `MISCOUNTED`: its tokens were.
    """

    ANSWERED = "answered"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    BROKEN = "broken off"
    TOLD = "error"
    LOST = "lost"
    REPEATED = "repeated"
    MISSING = "missing"
    MISCOUNTED = "usage"


FAILURES = (Ending.TOLD, Ending.LOST, Ending.REPEATED, Ending.MISSING, Ending.MISCOUNTED)


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
    text: str = ""  # what came of the answer, in its last try
    tokens: int | None = None  # what the answer says of its length
    ids: list[str] = field(default_factory=list)  # request ids, as the answers gave them
    retries: int = 0
    silences: list[tuple[float, float]] = field(default_factory=list)  # of its running stream
    heard_first: float | None = None
    heard_last: float | None = None

    def accept(self, at: float, request_id: str | None = None) -> None:
        """An answer began."""
        self.accepted = self.accepted or at
        if request_id and request_id not in self.ids:
            self.ids.append(request_id)

    def heard(self, at: float) -> None:
        """New text came."""
        self.heard_first = self.heard_first or at
        if self.heard_last is not None and at - self.heard_last > SHORT_SILENCE:
            self.silences.append((self.heard_last, at))
        self.heard_last = at

    def end(self, at: float, ending: Ending, note: str = "") -> None:
        """The end. A stream that was silent until it was lost was silent all that time."""
        if ending is Ending.LOST and self.heard_last is not None:
            self.heard(at)
        self.ended, self.ending, self.note = at, ending, note

    def open_within(self, began: float, ended: float) -> bool:
        """Whether it was in the service's hands at some moment of that time."""
        if self.accepted is None:
            return False
        return self.accepted <= ended and (self.ended is None or self.ended >= began)

    def longest_silence(self, began: float, ended: float) -> float:
        """Of the silences that began in that time, the longest one; 0 for none."""
        return max(
            (last - first for first, last in self.silences if began - _STEP <= first <= ended),
            default=0.0,
        )


@dataclass(slots=True)
class Death:
    """The API process was killed, or asked to end; until `ended` it may still be leaving."""

    began: float
    ended: float = float("inf")


@dataclass(slots=True)
class Ledger:
    """All requests, and when the API process was ended under them."""

    requests: list[Request] = field(default_factory=list)
    api_deaths: list[Death] = field(default_factory=list)
    turned_away: Counter[str] = field(
        default_factory=Counter
    )  # reason -> how often, retries included

    def turn_away(self, reason: str) -> None:
        """A try was refused, or found nobody."""
        self.turned_away[re.sub(r"[0-9a-f]{16,}|\d+\.\d+", "…", reason)[:_REASON]] += 1

    def open(self, kind: str, expected: str, at: float) -> Request:
        """A new request."""
        made = Request(kind, expected, at)
        self.requests.append(made)
        return made

    def failures(self) -> list[Request]:
        """Everything that broke a promise, and what never ended."""
        return [each for each in self.requests if each.ending is None or each.ending in FAILURES]

    def count(self, *endings: Ending) -> int:
        """Requests that ended so."""
        return sum(each.ending in endings for each in self.requests)

    def judge_broken(self, request: Request, at: float) -> Ending:
        """What it means that the connection broke at `at`.

        Before an answer began it is a refusal if the API process died or the connection was an idle one being closed.
        After that, it is honest only if the API process died. Anything else is a lost request.
        """
        api_died = any(
            request.began <= death.ended and death.began <= at for death in self.api_deaths
        )
        if request.accepted is None:
            return Ending.REFUSED if api_died or at - request.began < IDLE_CLOSED else Ending.LOST
        return Ending.BROKEN if api_died else Ending.LOST


def judge(
    expected: str, got: str, tokens: int | None = None, *, whole: bool = True
) -> Ending | None:
    """None if the text is right: all of what was expected, or, if not `whole`, how it begins. `tokens`: as counted by
    the answer, None if it did not say.
    """
    if got == expected and tokens not in (None, len(expected.split(" "))):
        return Ending.MISCOUNTED
    if got == expected or (not whole and expected.startswith(got)):
        return None
    words, right = got.split(" "), expected.split(" ")
    place = next(
        (index for index, (a, b) in enumerate(zip(words, right, strict=False)) if a != b),
        len(right),
    )
    if len(words) > len(right) and place == len(right):
        return Ending.REPEATED
    return (
        Ending.REPEATED if place < len(words) and words[place] in right[:place] else Ending.MISSING
    )


def numbered_words(tag: str, count: int) -> str:
    """`count` words, each unlike all others."""
    return " ".join(f"{tag}.{number}" for number in range(count))
