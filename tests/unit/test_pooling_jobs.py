"""Jobs that make vectors: their frames, and where they go on after a node's death."""

import struct

import msgspec
import pytest

from broker.dead_changes import Changes, changed, editable
from broker.encoding import encode_copy
from broker.errors import BadChange
from broker.stream import Stream
from broker.wire import Finished, Job, Pooling, ResumeRequest, Start, Vectors
from tests.unit.cluster import Cluster, HandEngine, until
from worker.chunk_parts import ROWS_BYTES, row_parts
from worker.engines.base import Chunk
from worker.operator_requests import prompt_text


class VectorEngine(HandEngine):
    """Sends the rows that the test names."""

    tasks = ("embed",)

    def rows(self, request_id: str, *rows: bytes) -> None:
        self.steps[request_id].put_nowait(Chunk(rows=rows))


def job(*inputs: str) -> Job:
    pooling = Pooling(inputs=inputs)
    return Job(request_id="a", model="m", reply_to="q", created=0.0, task="embed", pooling=pooling)


def row(number: float) -> bytes:
    return struct.pack("<f", number)


async def test_a_job_goes_on_with_the_inputs_that_are_missing() -> None:
    async with Cluster() as cluster:
        await cluster.add("root")
        await cluster.add("n1", "root", engine=VectorEngine("m", 1))
        stream = await cluster.client.submit(job("one", "two", "three"))
        first = cluster.engine("n1")
        assert isinstance(first, VectorEngine)
        await until(lambda: "a" in first.steps)
        first.rows("a", row(1), row(2))
        frames = [await anext(stream)]
        while not isinstance(frames[-1], Vectors):
            frames.append(await anext(stream))
        await cluster.add("n2", "root", engine=VectorEngine("m", 1))
        await cluster.kill("n1")
        second = cluster.engine("n2")
        assert isinstance(second, VectorEngine)
        await until(lambda: "a" in second.steps)
        assert second.jobs["a"].delivered_inputs == 2
        second.rows("a", row(3))
        second.finish("a")
        frames += [frame async for frame in stream]
    rows = [each for frame in frames if isinstance(frame, Vectors) for each in frame.rows]
    assert rows == [row(1), row(2), row(3)]
    assert isinstance(frames[-1], Finished)


async def test_a_new_attempt_names_what_its_reader_has() -> None:
    stream = Stream(job("one", "two"), lambda _: None)
    stream.push(Start(request_id="a", node="n1"))
    stream.push(Vectors(request_id="a", seq=1, rows=(row(1),)))
    assert stream.push(Vectors(request_id="a", seq=1, rows=(row(1),)))  # a repeat
    assert not stream.push(Vectors(request_id="a", seq=3, rows=(row(3),)))  # a gap
    asked = ResumeRequest(request_id="a", node="n2", incarnation="b", number=1)
    assert stream.grant(asked).delivered_inputs == 1
    assert stream.start_over().delivered_inputs == 1
    assert stream.first_text is not None


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([4, 4], [2]),
        ([ROWS_BYTES, 4], [1, 1]),
        ([2 * ROWS_BYTES, 4], [1, 1]),
        ([ROWS_BYTES // 2] * 5, [2, 2, 1]),
    ],
)
def test_rows_are_split_into_frames(sizes: list[int], parts: list[int]) -> None:
    rows = tuple(bytes(size) for size in sizes)
    found = list(row_parts(rows))
    assert [len(part) for part in found] == parts
    assert tuple(row for part in found for row in part) == rows


def test_copies_and_texts_for_operators() -> None:
    pooling = Pooling(inputs=("Hé", (5, 6)), queries=("q",))
    wanted = msgspec.structs.replace(job(), pooling=pooling)
    assert msgspec.json.decode(encode_copy(wanted), type=Job) == wanted
    assert prompt_text(wanted) == "q\n\nHé\n\n(5, 6)"


def test_a_dead_letter_may_change_its_model_alone() -> None:
    assert set(editable(job("one"))) == {"model"}
    former = msgspec.structs.replace(job("one"), delivered_inputs=1)
    assert changed(former, Changes(model="n")).delivered_inputs == 0
    with pytest.raises(BadChange, match="embeds or scores"):
        changed(former, Changes(prompt="p"))
