"""What a model gets of a conversation: its newest turns, as a well-formed dialogue."""

import itertools
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.chat import history
from api.chat.history import (
    TURN_BYTES,
    StoredMessage,
    byte_limit,
    dialogue,
    first_seen,
    newest,
    turns,
)
from broker.wire import AnyFrame, ChatMessage, Failed, Finished, Job, Role, Start
from tests.unit.api_site import FakeClient, echo, node_state
from tests.unit.dialogues import begin, told

# ---- the rules


def conversation(*said: str) -> list[StoredMessage]:
    """Messages by their role's first letter: "u: hello"; "a!": an answer refused as too long."""
    roles: dict[str, Role] = {"u": "user", "a": "assistant"}
    return [
        StoredMessage(
            id=number, role=roles[text[0]], content=text[2:].strip(), refused=text.startswith("a!")
        )
        for number, text in enumerate(said, 1)
    ]


def as_sent(messages: list[StoredMessage], limit: int = 10_000) -> list[str]:
    """The dialogue in the same notation."""
    sent = dialogue(newest(reversed(messages), limit).messages)
    return [f"{turn.role[0]}: {turn.content}" for turn in sent]


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        (["u: hello"], ["u: hello"]),
        (["u: hello", "a: hi", "u: and?"], ["u: hello", "a: hi", "u: and?"]),
        (["u: hello", "a:", "u: and?"], ["u: hello\n\nand?"]),  # stopped before the first word
        (["u: hello", "a:  \n", "u: and?"], ["u: hello\n\nand?"]),
        (["u: hello", "a:", "u: hello"], ["u: hello"]),  # asked again
        (["u: hello", "a:", "u: hi", "a:", "u: hello"], ["u: hi\n\nhello"]),
        (
            ["u: one", "a:", "u: two", "a:", "u: three", "a: 3", "u: x"],
            ["u: one\n\ntwo\n\nthree", "a: 3", "u: x"],
        ),
        (
            ["u: hello", "a: hi", "u: a whole book", "a!", "u: and?"],
            ["u: hello", "a: hi", "u: and?"],
        ),
        (["u: a whole book", "a!", "u: a whole book", "a!", "u: short"], ["u: short"]),
        (
            ["u: a whole book", "a!", "u: a whole book"],
            ["u: a whole book"],
        ),  # another model may take it
    ],
)
def test_a_dialogue_is_sane(stored: list[str], sent: list[str]) -> None:
    assert as_sent(conversation(*stored)) == sent


def test_the_newest_turns_are_kept() -> None:
    said = conversation(*(f"{'ua'[n % 2]}: {n}xxxxxxxxx" for n in range(9)))
    each = 10 + TURN_BYTES
    assert newest(reversed(said), 9 * each) == history.Excerpt(said, first=None)
    four = newest(reversed(said), 4 * each)
    assert four == history.Excerpt(
        said[-3:], first=7
    )  # four fit, but the oldest of them would be an answer
    assert newest(reversed(said), 1).messages == said[-1:]  # whatever its size


def test_the_limit_is_one_in_bytes() -> None:
    latin, chinese = (
        conversation(*["u: x" + "a" * 299, "a: b"] * 50),
        conversation(*["u: " + "模" * 100, "a: b"] * 50),
    )
    limit = byte_limit(500)
    assert limit == 8000
    assert (
        len(newest(reversed(latin), limit).messages)
        == len(newest(reversed(chinese), limit).messages)
        == 48
    )
    assert byte_limit(10_000_000) == 1_000_000
    assert byte_limit(0) == history.UNKNOWN_CONTEXT_BYTES


texts = st.sampled_from(["", " ", "one", "two", "模" * 20])
stored_messages = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), texts, st.booleans()), max_size=30
)


@given(stored_messages, st.integers(0, 400), st.integers(-1, 40))
def test_any_conversation_becomes_a_dialogue(said: list[Any], limit: int, omitted: int) -> None:
    stored = [
        StoredMessage(number, role, text, refused and role == "assistant" and not text)
        for number, (role, text, refused) in enumerate(said, 1)
    ]
    stored.append(StoredMessage(len(stored) + 1, "user", "the question"))
    excerpt = newest(reversed(stored), limit)
    sent = dialogue(excerpt.messages)
    assert sent[0].role == sent[-1].role == "user"
    assert sent[-1].content.endswith("the question")
    assert all(turn.content.strip() for turn in sent)
    assert all(one.role != other.role for one, other in itertools.pairwise(sent))
    # what the page marks is the beginning of one of the turns that were sent
    since = [each for each in stored if excerpt.first is None or each.id >= excerpt.first]
    seen = first_seen(since, excerpt.first, omitted)
    begins = [turn[0].id for turn in turns(excerpt.messages)]
    assert seen == excerpt.first if omitted <= 0 else seen == begins[min(omitted, len(begins) - 1)]


# ---- through the API


def answered(omitted: int = 0) -> Any:
    """A script: one word, with so many turns left out by the node."""

    def script(job: Job) -> list[AnyFrame]:
        *before, end = echo(job)
        assert isinstance(end, Finished)
        return [
            *before,
            Finished(
                request_id=job.request_id, seq=end.seq, reason="stop", omitted_messages=omitted
            ),
        ]

    return script


async def ask(member: httpx.AsyncClient, home: str, content: str) -> dict[str, Any]:
    """One more turn, read to its end; the last event's fields."""
    turn = await member.post(f"{home}/messages", json={"content": content})
    assert turn.status_code == 201, turn.text
    stream = await member.get(f"{home}/messages/{turn.json()['assistant_message']['id']}/stream")
    return told(stream.text)[-1][1]


def sent(job: Job) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in job.messages or ()]


async def test_a_chat_goes_on_after_an_answer_that_was_stopped_before_its_first_word(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.script = lambda job: []
    home, answer = await begin(member, "hello")
    assert (await member.post(f"{home}/messages/{answer['id']}/stop")).status_code == 204
    fake.script = echo
    await ask(member, home, "are you there?")
    assert sent(fake.jobs[-1]) == [("user", "hello\n\nare you there?")]


async def test_a_chat_goes_on_after_a_message_that_was_too_long(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home, _ = await begin(member, "hello")
    fake.script = lambda job: [
        Start(request_id=job.request_id, node="n1"),
        Failed(request_id=job.request_id, seq=1, code="too_long", message="9000 tokens do not fit"),
    ]
    assert "do not fit" in (await ask(member, home, "a whole book"))["message"]
    fake.script = echo
    await ask(member, home, "in short")
    assert sent(fake.jobs[-1]) == [("user", "hello"), ("assistant", "hello"), ("user", "in short")]


async def test_the_chat_page_and_arranca_let_the_node_cut(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    await begin(member)
    await member.post("/arranca/", json={"text": "hello", "timestamp": 1})
    assert [job.truncate for job in fake.jobs] == [True, True]


async def test_programs_are_told_that_a_prompt_is_too_long(
    program: httpx.AsyncClient, fake: FakeClient
) -> None:
    await program.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
    )
    assert [job.truncate for job in fake.jobs] == [False]


async def test_where_the_cut_is_as_the_node_made_it(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    home, _ = await begin(member, "one")
    assert (await ask(member, home, "two"))["seen_from"] is None
    fake.script = answered(omitted=2)
    end = await ask(member, home, "three")
    conversation = (await member.get(home)).json()
    assert end["seen_from"] == conversation["seen_from"] == conversation["messages"][2]["id"]
    fake.script = answered(omitted=10**9)  # more than there are
    end = await ask(member, home, "four")
    conversation = (await member.get(home)).json()
    assert end["seen_from"] == conversation["seen_from"] == conversation["messages"][6]["id"]
    fake.script = answered()  # another node has room for all
    assert (await ask(member, home, "five"))["seen_from"] is None
    assert (await member.get(home)).json()["seen_from"] is None


async def test_where_the_cut_is_as_it_was_made_here(
    member: httpx.AsyncClient, fake: FakeClient
) -> None:
    fake.states = {
        "n1": node_state("n1", context_length=20),
        "n2": node_state("n2", context_length=4000),
    }
    home, _ = await begin(member, "x" * 100)
    end = await ask(member, home, "y" * 100)  # 20 tokens are 320 bytes at most
    found = (await member.get(home)).json()
    assert [turn.content[0] for turn in fake.jobs[-1].messages or ()] == ["y"]
    assert end["seen_from"] == found["seen_from"] == found["messages"][2]["id"]
    fake.states = {"n1": node_state("n1", context_length=4000)}
    assert (await ask(member, home, "z"))["seen_from"] is None
    assert len(fake.jobs[-1].messages or ()) == 5


async def test_models_tell_their_context(program: httpx.AsyncClient, fake: FakeClient) -> None:
    fake.states = {
        "root": node_state("root", engine="none"),
        "n1": node_state("n1", context_length=8192),
        "n2": node_state("n2", context_length=4096),
        "n3": node_state("n3", context_length=100, status="failed"),
        "n4": node_state("n4"),  # does not tell
    }
    tiny, big = (await program.get("/v1/models")).json()["data"]
    assert (tiny["context_length"], tiny["max_model_len"]) == (4096, 4096)
    assert "context_length" not in big
    assert "max_model_len" not in big
    assert (await program.get("/v1/models/tiny")).json() == tiny


def test_a_turn_is_what_nodes_read() -> None:
    assert dialogue(conversation("u: hello")) == [ChatMessage(role="user", content="hello")]
