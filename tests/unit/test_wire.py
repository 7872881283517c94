"""The wire format: one golden file a message, read by every side."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import wire
from broker.errors import DecodeError

GOLDEN = Path(__file__).parent.parent / "golden"
WHO = {"request_id": "7d1f0c", "attempt": 2}

EXAMPLES: dict[str, tuple[object, wire.Wire]] = {
    "job": (
        wire.Job,
        wire.Job(
            request_id="7d1f0c",
            model="gemma-3-270m",
            reply_to="canopy.reply.api-1",
            created=1750000000.5,
            messages=(
                wire.ChatMessage(role="system", content="Be brief."),
                wire.ChatMessage(role="user", content="Hé 🌳"),
            ),
            sampling=wire.Sampling(
                max_tokens=32,
                temperature=0.7,
                top_p=0.9,
                top_k=40,
                seed=7,
                reproducible=True,
                stop=("\n\n",),
                min_p=0.05,
                repetition_penalty=1.1,
                frequency_penalty=0.5,
                presence_penalty=-0.5,
                logit_bias={17: -100, 4: 1.5},
                logprobs=2,
            ),
            user="ada",
            job_class="batch",
            work=96.5,
            expected=64.0,
            share=2.0,
            attempt=2,
            restarted=True,
            deadline=1750000060.0,
            trail=("root", "n1"),
            delivered="Hel",
            delivered_ids=(17, 4),
        ),
    ),
    "frames": (
        wire.Frames,
        wire.Frames(
            frames=(
                wire.Waiting(
                    **WHO, node="root", reason="every slot is busy", position=12, seconds=30.5
                ),
                wire.ResumeRequest(**WHO, node="n1", incarnation="b7", number=3),
                wire.Start(**WHO, seq=0, node="n1", incarnation="b7"),
                wire.Delta(**WHO, seq=1, text="🌳 tree", tokens=3, ids=(17, 4, 9)),
                wire.Delta(
                    **WHO,
                    seq=2,
                    text="🌳",
                    tokens=2,
                    logprobs=(
                        wire.TokenLogprob(
                            "🌳".encode()[:2], -0.5, ((b" a", -0.25), (b"\xf0\x9f", -0.5))
                        ),
                        wire.TokenLogprob("🌳".encode()[2:], 0.0),
                    ),
                ),
                wire.Interrupted(**WHO, seq=2, reason="out of memory", fault=True),
                wire.Finished(**WHO, seq=2, reason="stop", prompt_tokens=12, completion_tokens=3),
                wire.Failed(
                    **WHO,
                    seq=2,
                    code="too_long",
                    message="5000 tokens, at most 4096",
                    retryable=False,
                ),
            )
        ),
    ),
    "cancel": (wire.AnyControl, wire.Cancel(request_id="7d1f0c", before=2, user="ada")),
    "continue": (
        wire.AnyControl,
        wire.ResumeGrant(
            request_id="7d1f0c",
            number=3,
            attempt=3,
            delivered="Hel",
            delivered_ids=(17, 4),
            faults=("n1 died",),
        ),
    ),
    "supersede": (wire.AnyControl, wire.Supersede(request_id="7d1f0c", attempt=3)),
    "adopt": (wire.AnyControl, wire.Adopt(node="n4")),
    "drain": (wire.AnyControl, wire.Drain()),
    "resume": (wire.AnyControl, wire.Resume()),
    "attach": (wire.AnyControl, wire.Attach(parent="n2", for_good=False)),
    "ancestors": (wire.AnyControl, wire.Ancestors(names=("n1", "root"))),
    "ping": (wire.AnyControl, wire.Ping()),
    "leave": (wire.AnyControl, wire.Leave(node="n4")),
    "refused": (
        wire.AnyControl,
        wire.Refused(parent="root", reason="root serves gemma-3-270m, n9 serves echo"),
    ),
    "capacity": (
        wire.AnyControl,
        wire.Capacity(
            node="n4",
            incarnation="b7",
            number=41,
            slots=8,
            free=3,
            received=120,
            finished=117,
            accepting=False,
            users={"ada": 2, "": 1},
        ),
    ),
    "state": (
        wire.NodeState,
        wire.NodeState(
            name="n1",
            parent="root",
            children=("n2",),
            model="gemma-3-270m",
            engine="transformers",
            device="cpu",
            policy="paper",
            status="busy",
            slots=8,
            running=8,
            held=2,
            received=40,
            finished=30,
            tokens=900,
            host="room-1",
            pid=4242,
            started=1750000000.0,
            sent=1750000100.0,
            detail="",
            waited=4.5,
            wait_error=0.5,
            prompt_tokens=1000,
            reused_tokens=430,
            context_length=8192,
            warning="a child reports 9 free slots of 4",
        ),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden(name: str) -> None:
    kind, message = EXAMPLES[name]
    body = (GOLDEN / f"{name}.json").read_bytes()
    assert wire.decode(body, kind) == message
    assert json.loads(wire.encode(message)) == json.loads(body)


def test_every_golden_file_has_an_example() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EXAMPLES)


def test_what_nobody_asked_for_takes_no_bytes() -> None:
    plain = wire.encode(wire.Frames(frames=(wire.Delta(request_id="7d1f0c", text="a", ids=(3,)),)))
    assert plain == b'{"frames":[{"kind":"delta","request_id":"7d1f0c","text":"a","ids":[3]}]}'


@pytest.mark.parametrize("name", EXAMPLES)
def test_unknown_fields_are_ignored(name: str) -> None:
    kind, message = EXAMPLES[name]
    newer = json.dumps({**json.loads(wire.encode(message)), "from_the_future": [1]}).encode()
    assert wire.decode(newer, kind) == message


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
        wire.decode(body, wire.Job)


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(body: bytes) -> None:
    for kind in (wire.Job, wire.Frames, wire.AnyControl, wire.NodeState):
        try:
            wire.decode(body, kind)
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
    assert wire.decode(wire.encode(job), wire.Job) == job


def test_messages_are_values() -> None:
    job = EXAMPLES["job"][1]
    with pytest.raises(AttributeError):
        job.model = "other"  # type: ignore[attr-defined, misc]
    assert msgspec.structs.replace(job, attempt=3) != job
