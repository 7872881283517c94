"""Calls that must come, from a tiny model with random weights: what it says is noise."""

import json
import os
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest

from api.requests.parts import parser_for
from api.requests.reading import Collected
from broker.wire import ChatMessage, Job, Sampling, Start, Tool
from tests.unit.engine.decoder_runs import Runs
from tests.unit.engine.tiny import save_model
from tests.unit.engine.tiny import tokenizer as byte_tokenizer
from worker.engines.base import Chunk
from worker.engines.transformers.model.loader import load

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "units": {"enum": ["C", "F"]},
    },
    "required": ["city", "units"],
    "additionalProperties": False,
}
# Mentions what tells the format, and says next to nothing: a token is a byte here.
SHORT = "{%% if tools %%}{# %s #}{%% endif %%}{{ messages[-1].content }}"
MARKS = {  # not gpt-oss: noise would think for ever
    "hermes": '<tool_call> "arguments"',
    "llama3": 'ipython "parameters"',
    "mistral": "[TOOL_CALLS]",
    "mistral-named": "[TOOL_CALLS] [ARGS]",
    "deepseek-v3": "<｜tool▁calls▁begin｜> ```json",
    "deepseek-v3.1": "<｜tool▁calls▁begin｜>",
    "qwen3-coder": "<tool_call> <function= <parameter=",
    "glm": "<tool_call> <arg_key> <arg_value>",
    "gemma4": "<|tool_call>",
}
# A call has 160 places at which its node may die. Of each format every so many are tried, other
# ones than of the next; `HUNT=1 pytest tests/unit/engine/test_tool_runs.py` tries all.
EVERY = 1 if os.environ.get("HUNT") else 5
TOOLS = (
    Tool(name="get_weather", parameters=json.dumps(SCHEMA)),
    Tool(name="get_time", parameters=json.dumps(SCHEMA), strict=True),
)


@pytest.fixture(scope="module", params=MARKS)
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    folder = save_model("llama", tmp_path_factory.mktemp("tiny"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = SHORT % MARKS[request.param]
    tokenizer.save_pretrained(folder)
    loaded = load(folder, "cpu", 8)
    runs = Runs(loaded, 8)
    yield runs
    assert runs.decoder.stop(10)


def job(seed: int, **fields: Any) -> Job:
    return Job(
        request_id="r",
        model="tiny",
        reply_to="q",
        created=0.0,
        messages=(ChatMessage(role="user", content="Weather?"),),
        tools=TOOLS,
        tool_choice="required",
        sampling=Sampling(max_tokens=400, temperature=1.0, seed=seed),
        **{"parallel_tool_calls": False, **fields},
    )


def calls_in(runs: Runs, asked: Job, text: str) -> list[tuple[str, Any]]:
    tool_format, reasoning = runs.decoder.markup(asked)
    start = Start(request_id="r", node="n", tool_format=tool_format, reasoning_format=reasoning)
    parser, found = parser_for(asked, start), Collected()
    found.add([*parser.feed(text), *parser.end()])
    assert found.text == ""
    return [(call.name, json.loads(call.arguments)) for call in found.calls]


def test_noise_calls_a_tool_as_its_schema_says(runs: Runs) -> None:
    jobs = [job(seed) for seed in range(16)]
    names = set()
    for asked, text in zip(jobs, runs.texts(jobs), strict=True):
        [(name, arguments)] = calls_in(runs, asked, text)
        jsonschema.validate(arguments, SCHEMA)
        names.add(name)
    assert names <= {"get_weather", "get_time"}


def test_noise_calls_the_named_tool(runs: Runs) -> None:
    jobs = [job(seed, tool_name="get_time") for seed in range(8)]
    for asked, text in zip(jobs, runs.texts(jobs), strict=True):
        [(name, arguments)] = calls_in(runs, asked, text)
        jsonschema.validate(arguments, SCHEMA)
        assert name == "get_time"


def test_several_calls(runs: Runs) -> None:
    jobs = [job(seed, parallel_tool_calls=True) for seed in range(8)]
    counts = []
    for asked, sequence in [(each, runs.submit(each)) for each in jobs]:
        runs.until(lambda sequence=sequence: runs.ended(sequence))  # type: ignore[misc]
        last = runs.outputs[sequence.mailbox][-1]
        assert isinstance(last, Chunk)
        if last.finish == "stop":
            counts.append(len(calls_in(runs, asked, runs.text(sequence))))
    assert counts
    assert min(counts) >= 1


@pytest.mark.parametrize("with_ids", [True, False], ids=["ids", "text alone"])
def test_a_call_goes_on_wherever_its_node_died(
    runs: Runs, request: pytest.FixtureRequest, *, with_ids: bool
) -> None:
    asked = job(3)
    sequence = runs.submit(asked)
    runs.until(lambda: runs.ended(sequence))
    whole = runs.text(sequence)
    text, ids, cuts = "", (), []
    for chunk in runs.outputs[sequence.mailbox][1:-1]:
        assert isinstance(chunk, Chunk)
        text, ids = text + chunk.text, ids + chunk.ids
        delivered_ids = ids if with_ids else ()
        cuts.append(msgspec.structs.replace(asked, delivered=text, delivered_ids=delivered_ids))
    number = list(MARKS).index(request.node.callspec.params["runs"])
    cuts = cuts[number % EVERY :: EVERY]
    for cut, rest in zip(cuts, runs.texts(cuts), strict=True):
        [(name, arguments)] = calls_in(runs, asked, cut.delivered + rest)
        jsonschema.validate(arguments, SCHEMA)
        assert name in ("get_weather", "get_time")
        if with_ids:
            assert cut.delivered + rest == whole
