"""The answer to a dead letter's job that runs again, read to its end."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from broker.stream import Stream
from broker.wire import Delta, Failed, Finished, Start


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `error`: why there is no answer; None if there is one, with `end`. Text and
    tokens are the whole answer's, what was delivered before included. `start`: of the run that
    began the text; None if it was delivered before.
    """

    text: str
    tokens: int
    node: str
    error: str | None
    end: Finished | None = None
    start: Start | None = None


async def read_to_end(stream: Stream, on_text: Callable[[str], None] | None = None) -> Outcome:
    """Reads the answer, and gives each new part of its text to `on_text`.

    Cancelling this cancels the job.
    """
    error: str | None = None
    start: Start | None = None
    begun = bool(stream.job.delivered)
    async with aclosing(stream):
        async for frame in stream:
            if isinstance(frame, Start) and not begun:
                start = frame
            begun = begun or (isinstance(frame, Delta) and bool(frame.text))
            if isinstance(frame, Delta) and on_text is not None:
                on_text(frame.text)
            if isinstance(frame, Failed):
                error = frame.message
    end = stream.end
    if not isinstance(end, Finished):
        return Outcome(stream.text, stream.tokens, stream.node, error)
    return Outcome(stream.text, end.completion_tokens, stream.node, error, end, start)
