"""Messages to bytes and back, whatever the bytes are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import job_messages, node_state, wire
from broker.encoding import decode, encode
from broker.errors import DecodeError


def test_what_nobody_asked_for_takes_no_bytes() -> None:
    plain = encode(wire.Frames(frames=(wire.Delta(request_id="7d1f0c", text="a", ids=(3,)),)))
    assert plain == b'{"frames":[{"kind":"delta","request_id":"7d1f0c","text":"a","ids":[3]}]}'


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "object"),
        (b"{}", "request_id"),
        (b'{"request_id": 5}', "request_id"),
        (b'{"request_id":"a","model":"m","reply_to":"q","created":"soon"}', "created"),
        (
            b'{"request_id":"a","model":"m","reply_to":"q","created":1,"sampling":{"top_k":1.5}}',
            "top_k",
        ),
    ],
)
def test_a_broken_job_is_refused_with_the_reason(body: bytes, hint: str) -> None:
    with pytest.raises(DecodeError, match=hint):
        decode(body, wire.Job)


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(body: bytes) -> None:
    for kind in (wire.Job, wire.Frames, job_messages.AnyInboxMessage, node_state.NodeState):
        try:
            decode(body, kind)
        except DecodeError:
            continue


@given(
    text=st.text(),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1), max_size=3),
)
def test_any_text_survives(text: str, seed: int | None, stop: list[str]) -> None:
    job = wire.Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0.0,
        prompt=text,
        sampling=wire.Sampling(seed=seed, stop=tuple(stop)),
    )
    assert decode(encode(job), wire.Job) == job
