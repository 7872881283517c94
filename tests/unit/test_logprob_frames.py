"""Logprobs from an engine's chunks to a reader's frames: none lost, none unrequested."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from broker.wire import AnyFrame, Delta, Finished, Job, Start, TokenLogprob
from worker.engines.base import Chunk, EngineFailed, Markup
from worker.engines.transformers.mailbox import Mailbox
from worker.run import JobRun
from worker.rw_lock import ReadersWriterLock

ONE, TWO, THREE = (
    TokenLogprob(token, -0.5, ((token, -0.5),)) for token in (b"a", b"\xf0\x9f", b"\x8c\xb3")
)
JOB = Job(request_id="r", model="m", reply_to="q", created=0, prompt="x")


class Scripted:
    """An engine that says these chunks."""

    def __init__(self, *chunks: Chunk) -> None:
        self._chunks = chunks

    def markup(self, job: Job) -> Markup:
        return Markup()

    async def run(self, job: Job) -> AsyncIterator[Chunk]:
        for chunk in self._chunks:
            yield chunk


class Reader:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.frames: list[AnyFrame] = []

    def send(self, frame: AnyFrame) -> None:
        self.frames.append(frame)

    async def flowing(self) -> None:
        """Always."""


async def frames(*chunks: Chunk) -> list[AnyFrame]:
    reader: Any = Reader()
    engine: Any = Scripted(*chunks)
    ending = await JobRun(
        engine, JOB, "n", "boot", 1, reader, ReadersWriterLock(lambda: None)
    ).run()
    return [*reader.frames, ending]


async def test_frames_carry_them_also_without_text() -> None:
    received = await frames(
        Chunk(prompt_tokens=1),
        Chunk(text="a", tokens=1, ids=(5,), logprobs=(ONE,)),
        Chunk(tokens=1),  # half a character, without logprobs: nothing to tell
        Chunk(tokens=1, ids=(6,), logprobs=(TWO,), finish="length"),
    )
    start, first, second, end = received
    assert isinstance(start, Start)
    assert isinstance(first, Delta)
    assert isinstance(second, Delta)
    assert (first.logprobs, second.text, second.logprobs) == ((ONE,), "", (TWO,))
    assert [frame.seq for frame in received] == [0, 1, 2, 3]
    assert isinstance(end, Finished)
    assert end.completion_tokens == 3


async def test_joined_chunks_keep_them_in_order() -> None:
    mailbox = Mailbox()
    mailbox.put(Chunk(prompt_tokens=1))
    for text, each in (("a", ONE), ("", TWO), ("🌳", THREE)):
        mailbox.put(Chunk(text=text, tokens=1, logprobs=(each,)))
    mailbox.put(EngineFailed("over"))
    await mailbox.get()
    assert await mailbox.get() == Chunk(text="a🌳", tokens=3, logprobs=(ONE, TWO, THREE))


def test_bytes_of_any_kind_survive_the_wire() -> None:
    every = TokenLogprob(bytes(range(256)), -1.25, ((b"", 0.0), (b"\xff", -9999.0)))
    assert msgspec.json.decode(msgspec.json.encode(every), type=TokenLogprob) == every
