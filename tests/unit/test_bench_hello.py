"""From copied messages to who ran what and when, and whether an answer is right."""

import pytest

from bench.firehose import Firehose, Trail
from bench.hello import judge
from broker.session import Delivery
from broker.wire import Finished, Frames, Job, Start, Waiting, Wire, encode

QUESTION = {"text": "Hello Hello", "timestamp": "7", "request_id": "r1"}


def copy(key: str, message: Wire) -> Delivery:
    return Delivery(encode(message), "amq.rabbitmq.trace", key, {}, False, lambda _done: None)


def test_a_trail_is_read_from_the_copies() -> None:
    firehose = Firehose()
    job = Job(request_id="r1", model="echo", reply_to="canopy.reply.p", created=0.0, prompt="Hello")
    frames = (Start(request_id="r1", node="n1"), Finished(request_id="r1", seq=1, reason="stop"))
    for delivery in (
        copy("publish.canopy.jobs", job),
        copy("deliver.canopy.node.root", job),
        copy("deliver.canopy.node.n1", job),
        copy("deliver.canopy.reply.p", Frames(frames=frames)),
    ):
        firehose.on_message(delivery)
        assert delivery.settled
    trail = firehose.trails["r1"]
    times = trail.times()
    assert times is not None
    assert (trail.path, times.node) == ("root > n1", "n1")
    assert times.entered <= times.started <= times.ended


def test_a_job_starts_when_a_node_with_a_free_slot_takes_it() -> None:
    trail = Trail(
        entered=1.0, taken=[("root", 2.0), ("n1", 3.0)], node="n1", started=5.0, ended=9.0
    )
    times = trail.times()
    assert times is not None
    assert times.started == 3.0


def test_a_job_that_its_node_held_starts_with_its_first_frame() -> None:
    firehose = Firehose()
    firehose.on_message(
        copy(
            "deliver.canopy.reply.p",
            Frames(frames=(Waiting(request_id="r1", node="n1", reason="busy"),)),
        )
    )
    trail = firehose.trails["r1"]
    trail.entered, trail.taken, trail.node, trail.started, trail.ended = (
        1.0,
        [("n1", 3.0)],
        "n1",
        5.0,
        9.0,
    )
    times = trail.times()
    assert times is not None
    assert times.started == 5.0


def test_what_was_not_seen_is_not_made_up() -> None:
    assert Trail(entered=1.0, taken=[("root", 2.0)]).times() is None


async def test_an_end_that_never_comes_is_waited_for_in_vain() -> None:
    assert not await Firehose().until_ended(["r1"], seconds=0.01)


@pytest.mark.parametrize(
    ("changed", "exact", "right"),
    [
        ({}, "Hello Hello", True),
        ({}, None, True),
        ({"text": "Hello"}, "Hello Hello", False),
        ({"text": ""}, None, False),
        ({"timestamp": 7}, None, False),
    ],
)
def test_what_a_right_answer_is(changed: dict[str, object], exact: str | None, right: bool) -> None:
    reply = judge({**QUESTION, **changed}, 0.1, "7", exact)
    assert reply.right is right
    assert bool(reply.wrong_because) is not right
