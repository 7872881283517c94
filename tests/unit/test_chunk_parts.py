"""Large chunks go in several frames, and nothing of them is lost."""

import msgspec
import pytest

from broker.wire import TokenLogprob
from worker.chunk_parts import MAX_IDS, MAX_LOGPROBS, MAX_TEXT, parts
from worker.engines.base import Chunk


def entries(count: int, top: int) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(b"%d" % number, -0.5, ((b"a", -0.5),) * top) for number in range(count)
    )


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(text="a", tokens=1, ids=(4,), finish="stop"),
        Chunk(prompt_logprobs=entries(3, 2)),
        Chunk(prompt_logprobs=entries(MAX_LOGPROBS, 1), ids=(1, 2), text="x", finish="length"),
        Chunk(prompt_logprobs=entries(3, MAX_LOGPROBS)),
        Chunk(text="ab" * MAX_TEXT, ids=tuple(range(2 * MAX_IDS + 1)), tokens=5, prompt_tokens=2),
    ],
)
def test_parts_make_the_chunk(chunk: Chunk) -> None:
    divided = list(parts(chunk))
    joined = Chunk(
        text="".join(part.text for part in divided),
        tokens=sum(part.tokens for part in divided),
        prompt_tokens=sum(part.prompt_tokens for part in divided),
        ids=sum((part.ids for part in divided), ()),
        prompt_logprobs=sum((part.prompt_logprobs for part in divided), ()),
        finish=divided[-1].finish,
    )
    assert joined == chunk
    assert all(part.finish is None for part in divided[:-1])
    for part in divided:
        assert len(part.ids) <= MAX_IDS
        assert len(part.text) <= MAX_TEXT
        weight = sum(1 + len(entry.top) for entry in part.prompt_logprobs)
        assert weight <= MAX_LOGPROBS or len(part.prompt_logprobs) == 1


def test_a_usual_chunk_stays_itself() -> None:
    chunk = Chunk(text="a", tokens=1, ids=(4,))
    assert list(parts(chunk)) == [chunk]
    assert msgspec.structs.asdict(chunk)["finish"] is None
