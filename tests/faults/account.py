"""What one reader was promised, what came, and the verdict. Pure: callers pass the times."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from broker.wire import AnyFrame, Delta, Failed, FailureCode, Finished, Start, Waiting

Verdict = Literal["answered", "told", "failed", "lost", "wrong"]


@dataclass
class Answer:
    """One job as its reader sees it. Its text is numbered words, so repetitions and gaps show.

    `asked`: another text to repeat, up to `tokens`. `failing`: the failure it must end with.
    """

    number: int
    tokens: int
    request_id: str = ""
    asked: str = ""
    failing: FailureCode | None = None
    pieces: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)  # that ran it, in order
    waiting: str = ""  # the node that said it holds it, while it does
    heard: list[float] = field(default_factory=list)  # when text or the end came
    end: Finished | Failed | None = None
    after_end: int = 0  # frames that came although it had ended

    @property
    def question(self) -> str:
        """What its reader says, and the echo repeats."""
        return self.asked or numbered(self.number, self.tokens)

    @property
    def expected(self) -> str:
        """The whole text."""
        return " ".join(itertools.islice(itertools.cycle(self.question.split()), self.tokens))

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.pieces)

    @property
    def node(self) -> str:
        """Where it runs now; empty while it does not."""
        return self.nodes[-1] if self.nodes and not self.waiting and self.end is None else ""

    def take(self, frame: AnyFrame, at: float) -> None:
        """Notes a frame that came at that time (seconds)."""
        if self.end is not None:
            self.after_end += 1
        match frame:
            case Waiting(node=node):
                self.waiting = node or "the client"
            case Start(node=node):
                self.nodes.append(node)
                self.waiting = ""
            case Delta(text=text):
                self.pieces.append(text)
                self.heard.append(at)
            case Finished() | Failed():
                self.end = frame
                self.heard.append(at)

    def verdict(self) -> Verdict:
        """What became of it. Told: it failed as it had to, and its reader knows why."""
        if self.end is None:
            return "lost"
        if isinstance(self.end, Failed):
            return "told" if self.end.code == self.failing and not self.after_end else "failed"
        return "answered" if self.fault_in_answer() is None else "wrong"

    def fault_in_answer(self) -> str | None:
        """What is wrong with an answer that ended; None if it is exact."""
        if not isinstance(self.end, Finished) or self.failing is not None:
            return f"ended with {self.end}"
        if self.text != self.expected:
            return fault_in_text(self.text.split(), self.expected.split())
        if self.after_end:
            return f"{self.after_end} frames after its end"
        counted = (self.end.reason, self.end.prompt_tokens, self.end.completion_tokens)
        right = ("length", len(self.question.split()), self.tokens)
        if counted != right:
            return f"reason and usage are {counted}, not {right}"
        return None

    def complaint(self) -> str:
        """A line that says what went wrong and where it ran."""
        has = len(self.text.split())
        what = {
            "lost": f"no end; has {has} of {self.tokens} words; "
            f"waiting at {self.waiting or 'nowhere'}",
            "failed": str(self.end),
            "wrong": self.fault_in_answer(),
        }.get(self.verdict(), "fine")
        return f"job {self.number} (ran on {', '.join(self.nodes) or 'no node'}): {what}"

    def silence(self, since: float) -> float:
        """The longest time without text after `since`, up to its end, in seconds."""
        after = [at for at in self.heard if at > since]
        return max(
            (later - earlier for earlier, later in zip([since, *after], after, strict=False)),
            default=0.0,
        )


def numbered(job: int, count: int) -> str:
    """`count` words that no other job has."""
    return " ".join(f"{job}.{word}" for word in range(count))


def fault_in_text(words: Sequence[str], expected: Sequence[str]) -> str:
    """How the words differ from what was expected."""
    repeated = len(words) - len(set(words))
    missing = len(set(expected) - set(words))
    foreign = len(set(words) - set(expected))
    where = next(
        (i for i, (a, b) in enumerate(zip(words, expected, strict=False)) if a != b), len(words)
    )
    counts = f"{repeated} repeated, {missing} missing, {foreign} foreign"
    return f"text wrong from word {where} on: {counts}"


def count(answers: Iterable[Answer], *verdicts: Verdict) -> int:
    """How many of the answers got one of these verdicts."""
    return sum(answer.verdict() in verdicts for answer in answers)
