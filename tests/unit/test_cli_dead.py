"""Dead letters, on the in-memory twin: read, shown, dropped, given back."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner

from broker import dead_changes, dead_letters
from broker.dead_changes import Changes
from broker.dead_letters import DeadLetters
from broker.dead_replay import Outcome
from broker.encoding import encode
from broker.errors import BadChange, NoSuchLetter
from broker.memory import MemoryBroker, MemorySession
from broker.wire import ChatMessage, Finished, Job, Sampling
from cli import audit, dead_replays
from cli.commands import dead as commands
from cli.dead_replays import Replay
from cli.errors import CliError
from topology import names

JOB = Job(
    request_id="r1",
    model="echo",
    reply_to="canopy.reply.gone",
    created=1.0,
    messages=(ChatMessage(role="user", content="hello"),),
    sampling=Sampling(seed=7),
    user="ann",
    attempt=4,
    restarted=True,
    seconds_left=2.0,
    trail=("root", "n1"),
    delivered="hel",
    delivered_ids=(1, 2),
)
HEADERS: Mapping[str, object] = {
    "reason": "lost 3 times",
    "node": "n1",
    "at": "1700000000.5",
    "request_id": "r1",
    "trail": ["root", "n1"],
    "faults": ["n1 died"],
}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


async def session_with(
    broker: MemoryBroker, *letters: tuple[bytes, Mapping[str, object]]
) -> MemorySession:
    session = broker.session()
    await session.declare_queue(names.DEAD_QUEUE)
    for body, headers in letters:
        broker.put("", names.DEAD_QUEUE, body, headers)
    return session


def depth(broker: MemoryBroker) -> int:
    return len(broker.queues[names.DEAD_QUEUE].ready)


async def test_a_job_has_its_requests_id_and_garbage_a_hash_of_its_own(
    broker: MemoryBroker,
) -> None:
    session = await session_with(
        broker, (encode(JOB), HEADERS), (b"\xff{", {"reason": "x"}), (b"\xff{", {})
    )
    job, first, second = await dead_letters.read_letters(session)
    assert (job.id, job.job, job.reason, job.node, job.at) == (
        "r1",
        JOB,
        "lost 3 times",
        "n1",
        1_700_000_000.5,
    )
    assert (first.job, first.reason, first.node, first.at) == (None, "x", "", None)
    assert second.reason == "unknown"
    assert len({first.id, second.id}) == 2
    assert len(first.id) == 12


async def test_reading_changes_nothing(broker: MemoryBroker) -> None:
    session = await session_with(broker, *((b"%d" % number, {}) for number in range(3)))
    assert [letter.delivery.body for letter in await dead_letters.read_letters(session)] == [
        b"0",
        b"1",
        b"2",
    ]
    assert depth(broker) == 0
    await session.close()
    assert [message.body for message in broker.queues[names.DEAD_QUEUE].ready] == [b"0", b"1", b"2"]


async def test_dropped_letters_are_gone_and_others_stay(broker: MemoryBroker) -> None:
    session = await session_with(broker, *((b"%d" % number, {}) for number in range(3)))
    letters = await dead_letters.read_letters(session)
    letters[1].drop()
    letters[0].give_back()
    await session.close()
    assert [message.body for message in broker.queues[names.DEAD_QUEUE].ready] == [b"0", b"2"]


async def test_letters_that_come_meanwhile_are_left_alone(broker: MemoryBroker) -> None:
    session = await session_with(broker, (b"early", {}))
    (early,) = await dead_letters.read_letters(session)
    broker.put("", names.DEAD_QUEUE, b"late", {})
    early.drop()
    await session.close()
    assert [message.body for message in broker.queues[names.DEAD_QUEUE].ready] == [b"late"]


async def test_no_queue_is_no_letters(broker: MemoryBroker) -> None:
    assert await dead_letters.read_letters(broker.session()) == []


def test_a_replayed_job_is_asked_anew() -> None:
    again = dead_changes.to_replay(JOB, "r2", 9.0)
    assert (again.request_id, again.created, again.attempt, again.restarted) == (
        "r2",
        9.0,
        1,
        False,
    )
    assert (again.trail, again.seconds_left) == ((), None)
    assert (again.model, again.messages, again.sampling, again.user) == (
        "echo",
        JOB.messages,
        JOB.sampling,
        "ann",
    )


async def test_the_list_is_aligned_and_harmless(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    session = await session_with(
        broker, (encode(JOB), HEADERS), (b"x", {"reason": "bad \x1b[31m\nbytes", "at": "?"})
    )
    described = [
        dead_letters.describe(letter) for letter in await dead_letters.read_letters(session)
    ]
    assert json.loads(json.dumps(described))[0] == {
        "id": "r1",
        "when": 1_700_000_000.5,
        "model": "echo",
        "user": "ann",
        "node": "n1",
        "reason": "lost 3 times",
        "attempts": 4,
        "trail": ["root", "n1"],
        "faults": ["n1 died"],
    }
    head, first, second = commands.table(described)
    assert head.split() == ["id", "when", "model", "user", "node", "reason"]
    assert first.split() == [
        "r1",
        "2023-11-14",
        "22:13:20",
        "echo",
        "ann",
        "n1",
        "lost",
        "3",
        "times",
    ]
    assert second.endswith("-     -     bad  [31m bytes")
    assert head.index("reason") == first.index("lost") == second.index("bad")
    assert commands.table([]) == ["No dead letters."]


async def test_a_letter_is_shown_whole(broker: MemoryBroker) -> None:
    session = await session_with(
        broker, (encode(JOB), HEADERS), (b"\xff\x1b", {"reason": "no job"})
    )
    job, garbage = await dead_letters.read_letters(session)
    shown = commands.full_text(job)
    assert "trail      root, n1" in shown
    assert "faults     n1 died" in shown
    assert json.loads(shown.partition("\n\n")[2])["messages"] == [
        {"role": "user", "content": "hello"}
    ]
    assert commands.full_text(garbage).endswith("b'\\xff\\x1b'")


async def test_dropping_is_all_or_nothing(broker: MemoryBroker) -> None:
    session = await session_with(broker, (encode(JOB), HEADERS), (b"x", {}))
    letters = await dead_letters.read_letters(session)
    with pytest.raises(CliError, match="There is no dead letter 'nope'"):
        commands.drop_letters(letters, ["r1", "nope"])
    assert not any(letter.delivery.settled for letter in letters)
    assert commands.drop_letters(letters, ["r1"]) == 1
    assert [letter.delivery.settled for letter in letters] == [True, False]
    assert commands.drop_letters(letters, []) == 2


async def test_a_letter_as_a_document(broker: MemoryBroker) -> None:
    session = await session_with(broker, (encode(JOB), HEADERS), (b"\xff{", {}))
    job, garbage = await dead_letters.read_letters(session)
    assert json.loads(commands.as_document(job))["content"]["user"] == "ann"
    assert json.loads(commands.as_document(garbage))["content"] == "\\xff{"


def test_a_replay_as_a_document() -> None:
    end = Finished(request_id="r2", reason="stop", prompt_tokens=1, completion_tokens=2)
    shown = Replay("r1", Outcome("get up", 2, "n1", None, end)).document()
    assert json.loads(json.dumps(shown)) == {
        "id": "r1",
        "text": "get up",
        "tokens": 2,
        "node": "n1",
        "error": None,
    }


@pytest.fixture
def recorded(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is recorded; the letters are the twin's, and the editor changes nothing."""
    entries: list[tuple[str, str]] = []

    @contextmanager
    def note(action: str, target: str, detail: str = "") -> Iterator[None]:
        entries.append((action, target))
        yield

    letters = DeadLetters(lambda: session_with(broker, (encode(JOB), HEADERS)))
    monkeypatch.setattr(audit, "recorded", note)
    monkeypatch.setattr(dead_replays, "dead_letters", lambda: letters)
    monkeypatch.setattr(click, "edit", lambda text, extension: None)
    return entries


@pytest.mark.parametrize("terminal", [True, False])
def test_a_prompt_that_the_editor_shows_is_recorded(
    terminal: bool, recorded: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_is_terminal", lambda: terminal)
    result = CliRunner().invoke(commands.edit, ["r1"])
    assert isinstance(result.exception, CliError)
    assert recorded == ([("look at a dead letter", "r1")] if terminal else [])


async def open_session(broker: MemoryBroker) -> MemorySession:
    return broker.session()


async def test_readers_take_turns(broker: MemoryBroker) -> None:
    await session_with(broker, (encode(JOB), HEADERS), (b"x", {}))
    letters = DeadLetters(lambda: open_session(broker))
    seen: list[int] = []

    async def look() -> None:
        async with letters.all() as present:
            await asyncio.sleep(0)
            seen.append(len(present))

    await asyncio.gather(look(), look(), look())
    assert seen == [2, 2, 2]
    async with letters.all(1) as (oldest,):
        assert oldest.id == "r1"


async def test_a_letter_that_is_taken_is_hidden_and_returns(broker: MemoryBroker) -> None:
    await session_with(broker, (encode(JOB), HEADERS), (b"x", {}), (b"y", {}))
    letters = DeadLetters(lambda: open_session(broker))
    async with letters.take(["r1"]) as (taken,):
        async with letters.all() as others:
            assert [letter.delivery.body for letter in others] == [b"x", b"y"]
        with pytest.raises(NoSuchLetter, match="r1"):
            async with letters.take(["r1"]):
                pass
        assert taken.job == JOB
    async with letters.all() as present:
        assert present[0].id == "r1"


async def test_many_letters_are_read_in_batches_of_bounded_size(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "BATCH", 3)
    session = await session_with(broker, *((b"%d" % number, {}) for number in range(8)))
    letters = await dead_letters.read_letters(session)
    assert [letter.delivery.body for letter in letters] == [b"%d" % number for number in range(8)]
    for letter in letters:
        letter.give_back()
    await asyncio.sleep(0)
    monkeypatch.setattr(dead_letters, "MAX_BYTES", 4)
    assert len(await dead_letters.read_letters(session)) == 6  # two batches of three bytes


def test_an_unchanged_job_goes_on_after_the_text_that_its_reader_has() -> None:
    saved_as_it_was = dead_changes.parse(dead_changes.editable(JOB))
    for changes in (Changes(), saved_as_it_was):
        again = dead_changes.to_replay(dead_changes.changed(JOB, changes), "r2", 9.0)
        assert (again.delivered, again.delivered_ids) == ("hel", (1, 2))


def test_an_edited_job_differs_where_it_was_changed() -> None:
    document = dead_changes.editable(JOB)
    assert document["messages"] == [{"role": "user", "content": "hello"}]
    document["sampling"] |= {"max_tokens": 5, "logit_bias": {"7": 1.5}}
    document["model"] = "other"
    job = dead_changes.changed(JOB, dead_changes.parse(document))
    assert (job.delivered, job.delivered_ids) == ("", ())
    assert (job.model, job.messages, job.user) == ("other", JOB.messages, "ann")
    assert (job.sampling.max_tokens, job.sampling.seed) == (5, 7)
    assert job.sampling.logit_bias == {7: 1.5}
    prompted = dead_changes.changed(JOB, dead_changes.parse({"prompt": "go on"}))
    assert (prompted.messages, prompted.prompt) == (None, "go on")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"sampling": {"top_p": 3}}, "sampling: .*<= 1"),
        ({"sampling": {"topp": 1}}, "there is no 'topp'"),
        ({"messages": []}, "messages: give 1"),
        ({"messages": [{"role": "boss", "content": ""}]}, "Invalid enum value 'boss'"),
        ({"messages": [{"role": "user", "content": "x"}], "prompt": "x"}, "not both"),
        ({"model": ""}, "model"),
        ({"user": "root"}, "unknown field"),
        ({"sampling": {"temperature": float("inf")}}, "sampling"),
    ],
)
def test_what_makes_no_job_is_refused(document: dict[str, object], reason: str) -> None:
    with pytest.raises(BadChange, match=reason):
        dead_changes.changed(JOB, dead_changes.parse(document))
