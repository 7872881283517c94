"""What is delivered, and when: nothing is lost, reordered or delayed for ever."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.base import Chunk, EngineFailed
from worker.engines.transformers.mailbox import Mailbox
from worker.engines.transformers.scheduler_protocol import StepOutput
from worker.engines.transformers.throttle import CHUNKS_PER_SECOND, StreamThrottle

STEP = 0.01
tokens = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), max_size=6), max_size=60
)


class Streams:
    """A clock, and what was delivered."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.delivered: list[StepOutput] = []
        self.throttle = StreamThrottle(self.delivered.append, lambda: self.now)
        self.boxes = [Mailbox() for _ in range(count)]

    def step(self, output: StepOutput, delay: float = 0.0) -> StepOutput:
        self.now += STEP
        before = len(self.delivered)
        self.throttle.push(output, delay)
        delivered: StepOutput = []
        for output in self.delivered[before:]:
            delivered += output
        return delivered

    def text(self, number: int) -> str:
        return "".join(
            item.text
            for output in self.delivered
            for box, item in output
            if box is self.boxes[number] and isinstance(item, Chunk)
        )


@given(tokens, st.lists(st.booleans(), min_size=6, max_size=6))
def test_every_token_is_delivered_once_and_in_order(
    steps: list[list[tuple[int, str]]], fails: list[bool]
) -> None:
    streams = Streams(6)
    expected = [""] * 6
    for step in steps:
        streams.step(
            [
                (streams.boxes[number], Chunk(text=text, tokens=1))
                for number, text in dict(step).items()
            ]
        )
        for number, text in dict(step).items():
            expected[number] += text
    error = EngineFailed("failed")
    ends = [
        (box, error if fail else Chunk(finish="stop"))
        for box, fail in zip(streams.boxes, fails, strict=True)
    ]
    streams.step(list(ends))
    assert [streams.text(number) for number in range(6)] == expected
    assert not streams.throttle._pending
    assert not streams.throttle._last_flush


def test_one_stream_gets_each_token_at_once() -> None:
    streams = Streams(1)
    for _ in range(10):
        assert streams.step([(streams.boxes[0], Chunk(text="x", tokens=1))]) == [
            (streams.boxes[0], Chunk(text="x", tokens=1))
        ]


def test_many_streams_are_flushed_seldom_but_for_the_first_token_and_the_end() -> None:
    count = 500  # a tenth of a second each
    streams = Streams(count)
    one = [(box, Chunk(text="x", tokens=1)) for box in streams.boxes]
    assert len(streams.step(one)) == count
    counts = [len(streams.step(one)) for _ in range(100)]
    assert sum(counts) <= CHUNKS_PER_SECOND * 100 * STEP
    assert sum(counts) >= 0.8 * CHUNKS_PER_SECOND * 100 * STEP
    last = dict(streams.step([(streams.boxes[7], Chunk(text="!", tokens=1, finish="stop"))]))[
        streams.boxes[7]
    ]
    assert isinstance(last, Chunk)
    assert last.text.endswith("!")
    assert streams.text(7) == "x" * 101 + "!"


def test_a_pending_chunk_is_flushed_though_its_stream_makes_nothing_new() -> None:
    streams = Streams(500)
    for _ in range(2):
        streams.step([(box, Chunk(text="x", tokens=1)) for box in streams.boxes])
    for _ in range(20):
        streams.step([])
    assert all(streams.text(number) == "xx" for number in range(500))


def test_a_cancelled_stream_is_forgotten() -> None:
    streams = Streams(500)
    for _ in range(2):
        streams.step([(box, Chunk(text="x", tokens=1)) for box in streams.boxes])
    streams.throttle.retain(streams.boxes[:2])
    flushed = {box for _ in range(20) for box, _ in streams.step([])}
    assert flushed == set(streams.boxes[:2])
    assert len(streams.throttle._last_flush) == 2


def test_what_would_be_due_in_a_long_step_is_flushed_before_it() -> None:
    count = 125  # a fortieth of a second each
    streams = Streams(count)
    one = [(box, Chunk(text="x", tokens=1)) for box in streams.boxes]
    streams.step(one)
    assert not streams.step(one, delay=0.01)
    assert len(streams.step(one, delay=0.01)) == count
