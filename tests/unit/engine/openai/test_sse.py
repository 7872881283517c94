"""Server-sent events, however their bytes are cut."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from worker.engines.openai.sse import BadStream, EventParser

LINES = some.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"data: ",
        b": c",
        b":",
        b"id: 1",
        b"event: x",
        b"",
        b"x\xe2\x80\xa8",
    ]
)


@given(some.lists(some.tuples(LINES, some.sampled_from([b"\n", b"\r\n"]))), some.data())
def test_events_are_the_same_however_the_bytes_are_cut(
    lines: list[tuple[bytes, bytes]], data: Any
) -> None:
    stream = b"".join(line + end for line, end in lines) + b"\n\n"
    expected = EventParser().feed(stream)
    events, parsed, rest = EventParser(), [], stream
    while rest:
        size = data.draw(some.integers(1, len(rest)))
        parsed += events.feed(rest[:size])
        rest = rest[size:]
    assert parsed == expected
    assert events.end() == []


def test_events_by_the_standard() -> None:
    events = EventParser()
    assert events.feed(b"data: one\ndata:  two\n\n: nothing\n\ndata\n\n") == [b"one\n two", b""]
    assert events.feed(b"data: lone\r\rdata: half") == [b"lone"]
    assert events.end() == [b"half"]


@pytest.mark.parametrize("piece", [b"x" * 11, b"data: 12345\ndata: 123456\n"])
def test_events_are_bounded(piece: bytes) -> None:
    with pytest.raises(BadStream):
        EventParser(limit=10).feed(piece)
