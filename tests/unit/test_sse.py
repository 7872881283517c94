"""Server-sent events: silence, cancellation, and templates equal to `data`."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http import sse
from api.openai.shapes import ChatShape
from api.openai.text_choice import Wanted
from api.openai.text_stream import TextChunks

sentences = st.text(st.characters(exclude_categories=["Cs"]))  # no half characters


class Source(AsyncIterator[str]):
    """Items from a queue; `None` ends them. It bears being cancelled."""

    def __init__(self, *items: str | None) -> None:
        self.items: asyncio.Queue[str | None] = asyncio.Queue()
        for item in items:
            self.items.put_nowait(item)

    async def __anext__(self) -> str:
        item = await self.items.get()
        if item is None:
            raise StopAsyncIteration
        return item


async def test_silence_is_said_each_time_and_nothing_is_lost() -> None:
    source = Source("first")
    ticks = sse.ticking(source, 0.01)
    assert await anext(ticks) == "first"
    assert await anext(ticks) is None
    assert await anext(ticks) is None
    source.items.put_nowait("second")
    assert await anext(ticks) == "second"
    source.items.put_nowait(None)
    assert [item async for item in ticks if item] == []


async def test_who_reads_slowly_is_not_told_of_silence() -> None:
    source = Source("first", "second", None)
    ticks = sse.ticking(source, 0.01)
    assert await anext(ticks) == "first"
    await asyncio.sleep(0.03)  # longer than the limit, but the source was not waited for
    assert [item async for item in ticks] == ["second"]


async def test_a_reader_that_is_cancelled_ends() -> None:
    ticks = sse.ticking(Source(), 60)
    reading = asyncio.ensure_future(anext(ticks))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_reader_that_is_cancelled_while_it_is_told_of_silence_ends() -> None:
    class Both(AsyncIterator[str]):
        async def __anext__(self) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # the tick
                reading.cancel()
                raise
            raise AssertionError

    async def read() -> None:
        async for _ in sse.ticking(Both(), 0.01):
            pass

    reading = asyncio.create_task(read())
    await asyncio.wait({reading}, timeout=10)
    assert reading.cancelled()


@given(text=sentences, model=sentences, usage=st.booleans())
def test_a_template_makes_the_same_event(text: str, model: str, usage: bool) -> None:
    shape = ChatShape("id", model, 1, usage)
    assert text == _delta_by_template(partial(shape.delta, 3), text)["delta"]["content"]
    chunks = TextChunks({"model": model}, [], Wanted(False, None, None), with_usage=usage)
    assert text == _delta_by_template(partial(chunks.text, 3), text)["text"]


def _delta_by_template(payload_of: Callable[[str], Any], text: str) -> dict[str, Any]:
    """The choice in an event that a template makes, which is as if made without one."""
    made = sse.Template(payload_of).event(text)
    assert made == sse.data(payload_of(text))
    [choice] = json.loads(made.removeprefix(b"data: "))["choices"]
    return dict(choice)
