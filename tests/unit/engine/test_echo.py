"""The echo engine, its chunks and its stop strings."""

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from broker.wire import ChatMessage, Grammar, Job, Sampling, Tool, ToolChoice
from tests.unit.engine.schemas import random_schema
from worker.engines import create
from worker.engines.base import Chunk, Engine, EngineUnavailable, InvalidRequest
from worker.engines.echo_instance import instance
from worker.engines.stop_filter import StopFilter
from worker.engines.transformers.mailbox import Mailbox


def job(*said: str, delivered: str = "", **settings: Any) -> Job:
    messages = tuple(ChatMessage(role="user", content=text) for text in said)
    return Job(
        request_id="r", model="echo", reply_to="q", created=0, messages=messages,
        sampling=Sampling(**settings), delivered=delivered,
    )  # fmt: skip


def echo(delay: float = 0.0) -> Engine:
    return create("echo", model="echo", model_path=None, device="auto", slots=4, token_delay=delay)


async def read(item: Job, delay: float = 0.0) -> list[Chunk]:
    return [chunk async for chunk in echo(delay).run(item)]


async def said(item: Job, delay: float = 0.0) -> tuple[str, int, str | None]:
    chunks = await read(item, delay)
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return (
        "".join(chunk.text for chunk in chunks),
        sum(chunk.tokens for chunk in chunks),
        chunks[-1].finish,
    )


@pytest.mark.parametrize(
    ("begun", "rest"),
    [("one tw", "o three"), ("one two", " three"), ("one two three", ""), ("2", "one two three")],
)
async def test_a_last_message_is_continued(begun: str, rest: str) -> None:
    asked = job("one two three")
    turns = (*(asked.messages or ()), ChatMessage(role="assistant", content=begun))
    item = msgspec.structs.replace(asked, messages=turns, continue_final_message=True)
    assert (await said(item))[::2] == (rest, "stop")


@pytest.mark.parametrize("delay", [0.0, 0.001])
@pytest.mark.parametrize(
    ("settings", "text", "tokens", "finish"),
    [
        ({}, "one two three", 3, "stop"),
        ({"max_tokens": 2}, "one two", 2, "length"),
        ({"max_tokens": 3}, "one two three", 3, "length"),
        ({"max_tokens": 5}, "one two three one two", 5, "length"),
        ({"stop": ("wo t",)}, "one t", 3, "stop"),
        ({"stop": ("zzz", "ne")}, "o", 1, "stop"),
        ({"max_tokens": 4, "delivered": "one two"}, " three one", 4, "length"),
        ({"max_tokens": 3, "delivered": "one tw"}, "o three", 3, "length"),
        ({"delivered": "one two three"}, "", 3, "stop"),
    ],
)
async def test_words(
    delay: float, settings: dict[str, Any], text: str, tokens: int, finish: str
) -> None:
    assert await said(job("first\nmessage", "one  two\nthree", **settings), delay) == (
        text,
        tokens,
        finish,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_tokens": 2},
        {"max_tokens": 6},
        {"stop": ("ee t",)},
        {"stop": ("wo t", "e x")},
        {"stop": ("x",)},
    ],
)
async def test_a_run_goes_on_wherever_it_was_cut(settings: dict[str, Any]) -> None:
    chunks = await read(job("one two three", **settings), delay=0.001)
    text, tokens, finish = await said(job("one two three", **settings))
    for cut in range(len(chunks) + 1):
        delivered = "".join(chunk.text for chunk in chunks[:cut])
        rest = await read(job("one two three", **settings, delivered=delivered))
        assert not rest[0].text
        assert delivered + "".join(chunk.text for chunk in rest) == text
        assert sum(chunk.tokens for chunk in rest) == tokens
        assert rest[-1].finish == finish


async def test_nothing_to_say() -> None:
    assert await said(job("", max_tokens=5)) == ("", 0, "stop")
    assert await said(Job(request_id="r", model="m", reply_to="q", created=0, prompt="a b")) == (
        "a b",
        2,
        "stop",
    )


async def test_first_chunk_counts_the_prompt() -> None:
    assert (await read(job("a b", "c d e")))[0].prompt_tokens == 5
    assert (await read(job("a b", "c d e"), delay=0.001))[0].prompt_tokens == 5


async def test_without_delay_words_come_in_few_chunks() -> None:
    chunks = await read(job("word", max_tokens=1000))
    assert len(chunks) < 10
    assert sum(chunk.tokens for chunk in chunks) == 1000


async def test_with_delay_a_token_at_a_time() -> None:
    chunks = await read(job("word", max_tokens=5), delay=0.001)
    assert [chunk.tokens for chunk in chunks] == [0, 1, 1, 1, 1, 1]


async def test_an_endless_run_can_be_cancelled() -> None:
    begun = asyncio.Event()

    async def run() -> None:
        async for _ in echo().run(job("word", max_tokens=10**9)):
            begun.set()

    reader = asyncio.create_task(run())
    await begun.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


def test_a_node_with_echo_starts_without_torch() -> None:
    program = (
        "import sys; from worker.engines import create;"
        "create('echo', model='m', model_path=None, device='auto', slots=1, token_delay=0);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


async def test_an_engine_elsewhere_is_called_by_its_path() -> None:
    engine = create(
        "worker.engines.echo", model="m", model_path=None, device="auto", slots=1, token_delay=0
    )
    assert [chunk.text async for chunk in engine.run(job("a b"))] == ["", "a b"]


def test_the_table_names_what_there_is() -> None:
    with pytest.raises(EngineUnavailable, match="echo, encoder, openai, transformers"):
        create("none", model="m", model_path=None, device="auto", slots=1, token_delay=0)
    for path, complaint in (
        ("worker.nowhere", "No module named 'worker.nowhere'"),
        ("worker.run", "create"),
    ):
        with pytest.raises(EngineUnavailable, match=complaint):
            create(path, model="m", model_path=None, device="auto", slots=1, token_delay=0)
    with pytest.raises(EngineUnavailable, match="slot"):
        create("echo", model="m", model_path=None, device="auto", slots=0, token_delay=0)


def test_a_stop_filter_costs_the_same_whatever_its_stops_are() -> None:
    """A text that is a stop string but for its last character, again and again."""
    stops = StopFilter(tuple("a" * 499 + last for last in "bcdefghijklmnopq"))
    began = time.process_time()
    shown = "".join(stops.push("aaaa") for _ in range(1000))
    assert time.process_time() - began < 2
    assert shown + stops.flush() == "a" * 4000


@settings(deadline=None)
@given(
    some.text("ab\n", max_size=30),
    some.lists(some.text("ab\n", min_size=1, max_size=4), max_size=3),
    some.data(),
)
def test_stop_filter_is_the_same_however_text_is_cut(
    text: str, stops: list[str], data: Any
) -> None:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    whole = StopFilter(tuple(stops))
    shown, rest = "", text
    while rest and not whole.stopped:
        size = data.draw(some.integers(1, len(rest)))
        shown, rest = shown + whole.push(rest[:size]), rest[size:]
        assert text.startswith(shown)
    if not ends:
        assert shown + whole.flush() == text
    else:  # cut differently, another stop string may be complete first; never is one shown
        assert whole.stopped
        assert not any(stop in shown for stop in stops)


async def test_a_slow_reader_gets_joined_chunks() -> None:
    mailbox = Mailbox()
    mailbox.put(Chunk(prompt_tokens=3))
    mailbox.put(Chunk(text="a", tokens=1, ids=(7,)))
    mailbox.put(Chunk(text="b", tokens=2, ids=(8, 9), finish="stop"))
    assert await mailbox.get() == Chunk(prompt_tokens=3)
    assert await mailbox.get() == Chunk(text="ab", tokens=3, ids=(7, 8, 9), finish="stop")


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3},
        "age": {"type": "integer", "minimum": 18},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "next"],
    "additionalProperties": False,
}


async def test_an_answer_keeps_a_schema() -> None:
    grammar = Grammar(kind="json_schema", source=json.dumps(PERSON))
    text, tokens, finish = await said(job("x", grammar=grammar))
    jsonschema.validate(json.loads(text), PERSON)
    assert finish == "stop"
    assert await said(job("x", grammar=grammar, delivered=text[:9])) == (text[9:], tokens, "stop")
    assert (await said(job("x", grammar=grammar, max_tokens=3)))[1:] == (3, "length")


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_small_texts_satisfy_random_schemas(first: int) -> None:
    kept = 0
    for seed in range(first, first + 40):
        schema = random_schema(seed)
        try:
            text = instance(Grammar(kind="json_schema", source=json.dumps(schema)))
        except InvalidRequest:
            continue
        jsonschema.validate(json.loads(text), schema)
        kept += 1
    assert kept > 25


async def test_other_grammars_and_refusals() -> None:
    assert instance(Grammar(kind="choice", source='["red", "blue"]')) in ("red", "blue")
    assert instance(Grammar(kind="regex", source="[0-9]{3}-x")).endswith("-x")
    assert instance(Grammar(kind="json_object")) == "{}"
    with pytest.raises(InvalidRequest, match="no short text"):
        instance(Grammar(kind="regex", source="a{2000}"))
    with pytest.raises(InvalidRequest, match="not"):
        await said(job("x", grammar=Grammar(kind="json_schema", source='{"not": {}}')))


SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
TOOLS = (Tool(name="f", parameters=SCHEMA), Tool(name="g"))


def with_tools(*messages: ChatMessage, choice: ToolChoice = "auto", name: str = "") -> Job:
    return Job(
        request_id="r",
        model="echo",
        reply_to="q",
        created=0,
        messages=messages,
        tools=TOOLS,
        tool_choice=choice,
        tool_name=name,
    )


@pytest.mark.parametrize(
    ("text", "choice", "name", "calls"),
    [
        ("hello there", "auto", "", []),
        ('call f {"n": 7}', "auto", "", [("f", {"n": 7})]),
        (
            'call f {"n": 7}, call g {"a": "c  d"}',
            "auto",
            "",
            [("f", {"n": 7}), ("g", {"a": "c  d"})],
        ),
        ('call h {"n": 7}', "auto", "", []),
        ("call f {oh}", "auto", "", []),
        ('call f {"n": 7}', "none", "", []),
        ("hello", "required", "", [("f", {"n": 1})]),
        ("hello", "required", "g", [("g", {})]),
        ('call f {"n": 7}', "required", "g", [("g", {})]),
    ],
)
async def test_calls(text: str, choice: ToolChoice, name: str, calls: list[Any]) -> None:
    job = with_tools(ChatMessage(role="user", content=text), choice=choice, name=name)
    answer, _, finish = await said(job)
    found = re.findall(r"<tool_call>\n(.*)\n</tool_call>", answer)
    assert [(call["name"], call["arguments"]) for call in map(json.loads, found)] == calls
    assert finish == "stop"
    if not calls:
        assert answer == text
    assert echo().markup(job).tool_format == ("" if choice == "none" else "hermes")


async def test_a_result_is_repeated() -> None:
    question = ChatMessage(role="user", content='call f {"n": 7}')
    result = ChatMessage(role="tool", content="seven of them", tool_call_id="1")
    assert (await said(with_tools(question, result)))[0] == "seven of them"


@pytest.mark.parametrize("strict", [False, True])
async def test_a_schema_that_cannot_be_kept(strict: bool) -> None:
    """Of a tool that is not strict, any object is called, as by a model."""
    schema = {"type": "object", "propertyNames": {"pattern": "^a"}, "if": {}, "then": {}}
    tool = Tool(name="f", parameters=json.dumps(schema), strict=strict)
    asked = with_tools(ChatMessage(role="user", content="hello"), choice="required")
    asked = msgspec.structs.replace(asked, tools=(tool,))
    if strict:
        with pytest.raises(InvalidRequest, match="cannot be kept"):
            await said(asked)
    else:
        assert '"arguments": {}' in (await said(asked))[0]
