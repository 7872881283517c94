"""Several streams read as one, whatever arrives when, and however impatient the reader is."""

import asyncio
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some

from api.requests.merge import Merged
from broker.stream import Stream
from broker.wire import AnyFrame, Delta, Failed, Finished, Job, Start


def stream(name: str, forgotten: list[str]) -> Stream:
    job = Job(request_id=name, model="m", reply_to="q", created=0, prompt="x")
    return Stream(job, lambda each: forgotten.append(each.request_id))


@settings(max_examples=60, deadline=None)
@given(some.data())
def test_every_stream_is_read_to_its_end_in_its_order(data: Any) -> None:
    count = data.draw(some.integers(1, 4))
    left = [data.draw(some.integers(0, 4)) for _ in range(count)]
    order = data.draw(
        some.permutations([n for n, pieces in enumerate(left) for _ in range(pieces + 2)])
    )
    pauses = data.draw(some.lists(some.booleans(), min_size=len(order), max_size=len(order)))

    async def run() -> None:
        forgotten: list[str] = []
        streams = [stream(str(n), forgotten) for n in range(count)]
        merged = Merged(streams)
        read: list[AnyFrame] = []

        async def reading() -> None:
            async for frame in merged:
                read.append(frame)

        reader = asyncio.create_task(reading())
        sent = [0] * count
        for number, pause in zip(order, pauses, strict=True):
            seq, sent[number] = sent[number], sent[number] + 1
            who = {"request_id": str(number), "seq": seq}
            if seq == 0:
                streams[number].push(Start(**who, node="n"))
            elif seq <= left[number]:
                streams[number].push(Delta(**who, text=f"{seq} "))
            else:
                streams[number].push(Finished(**who, reason="stop"))
            if pause:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if reader.cancel():  # as a keep-alive does: it loses nothing
                    await asyncio.gather(reader, return_exceptions=True)
                    reader = asyncio.create_task(reading())
        await asyncio.wait_for(reader, 5)
        texts: defaultdict[str, str] = defaultdict(str)
        for frame in read:
            assert not texts[frame.request_id].endswith("end")
            texts[frame.request_id] += {Start: "start ", Finished: "end"}.get(
                type(frame), getattr(frame, "text", "")
            )
        for number, pieces in enumerate(left):
            assert (
                texts[str(number)]
                == "start " + "".join(f"{n} " for n in range(1, pieces + 1)) + "end"
            )
        assert sorted(forgotten) == [str(n) for n in range(count)]

    asyncio.run(run())


async def test_a_busy_stream_does_not_starve_the_others() -> None:
    streams = [stream(name, []) for name in "ab"]
    merged = Merged(streams)
    for seq in range(3):
        streams[0].push(Delta(request_id="a", seq=seq, text="x"))
    streams[1].push(Delta(request_id="b", seq=0, text="y"))
    first = await anext(merged)
    streams[0].push(Delta(request_id="a", seq=3, text="x"))
    assert {first.request_id, (await anext(merged)).request_id} == {"a", "b"}


async def test_closing_it_forgets_every_stream() -> None:
    forgotten: list[str] = []
    merged = Merged([stream(name, forgotten) for name in "abc"])
    await merged.aclose()
    assert forgotten == ["a", "b", "c"]


async def test_a_failure_is_a_frame_like_others() -> None:
    streams = [stream(name, []) for name in "ab"]
    merged = Merged(streams)
    streams[1].fail("engine", "out of memory")
    frame = await anext(merged)
    assert (type(frame), frame.request_id) == (Failed, "b")
