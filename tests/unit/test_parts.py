"""Answers taken apart: calls of tools and reasoning, however the text is cut."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.requests.parts import (
    CallArguments,
    CallBegins,
    Part,
    PartParser,
    ReasoningPart,
    TextPart,
    parser_for,
)
from api.requests.parts.formats import FORMATS
from broker.wire import Job, Start, Tool, ToolChoice

TOOLS = (Tool(name="f"), Tool(name="get_weather"))


def parser(tool_format: str = "", reasoning: str = "", choice: ToolChoice = "auto") -> PartParser:
    job = Job(request_id="r", model="m", reply_to="q", created=0, tools=TOOLS, tool_choice=choice)
    start = Start(request_id="r", node="n", tool_format=tool_format, reasoning_format=reasoning)
    return parser_for(job, start)


class Read:
    """What a reader makes of the parts."""

    def __init__(self, parts: list[Part]) -> None:
        self.text = self.reasoning = ""
        self.calls: list[tuple[str, str]] = []
        self.ids: list[str] = []
        for part in parts:
            self._take(part)

    def _take(self, part: Part) -> None:
        match part:
            case TextPart():
                self.text += part.text
            case ReasoningPart():
                self.reasoning += part.text
            case CallBegins():
                assert part.index == len(self.calls)
                self.calls.append((part.name, ""))
                self.ids.append(part.id)
            case CallArguments():
                assert part.index == len(self.calls) - 1
                name, arguments = self.calls[-1]
                self.calls[-1] = name, arguments + part.text

    @property
    def values(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def read(pieces: list[str], **formats: Any) -> Read:
    reader = parser(**formats)
    parts: list[Part] = []
    for piece in pieces:
        parts += reader.feed(piece)
    return Read(parts + reader.end())


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(borders)]


WEATHER = ("get_weather", {"city": "Rome"})
ANSWERS = [
    ("hermes", "Hello there \n", "Hello there \n", []),
    ("hermes", "a < b <tool_ <tool_call", "a < b <tool_ <tool_call", []),
    (
        "hermes",
        'I look. \n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n'
        "</tool_call>",
        "I look.",
        [WEATHER],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>}\\""}}</tool_call>\n'
        '<tool_call>\n{"arguments": {"city": "Rome"}, "name": "get_weather"}\n</tool_call>\nDone',
        "Done",
        [("f", {"a": '</tool_call>}"'}), WEATHER],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", {})]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("f", {"a": 1})],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [("f", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "f", "id": 3}</tool_call>', "", [("f", {})]),
    ("hermes", "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", []),
    ("hermes", '<tool_call>{"na', '<tool_call>{"na', []),
    ("hermes", '<tool_call>{"x": 1}</tool_call> y', '<tool_call>{"x": 1}</tool_call> y', []),
    ("llama3", ' {"name": "f", "parameters": {"a": [1, {}]}}', "", [("f", {"a": [1, {}]})]),
    ("llama3", '{"name": "Bob", "parameters": {}}', '{"name": "Bob", "parameters": {}}', []),
    ("llama3", '{"answer": {"name": "f"}} ok', '{"answer": {"name": "f"}} ok', []),
    ("llama3", 'Say {"name": "f", "parameters": {}}', 'Say {"name": "f", "parameters": {}}', []),
    (
        "llama3",
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {}}; '
        '{"name": "get_weather", "parameters": {"city": "Rome"}}',
        "",
        [("f", {}), WEATHER],
    ),
    (
        "llama3",
        '{"type": "function", "function": {"name": "f", "parameters": {"a": 2}}}',
        "",
        [("f", {"a": 2})],
    ),
    ("llama3", "<|python_tag|>f.call(1)", "<|python_tag|>f.call(1)", []),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, '
        '{"name": "get_weather", "arguments": {"city": "Rome"}}]',
        "",
        [("f", {}), WEATHER],
    ),
    (
        "mistral",
        'Well.[TOOL_CALLS]f[ARGS]{"a": "[TOOL_CALLS]"}[TOOL_CALLS]get_weather[CALL_ID]abc'
        '[ARGS]{"city": "Rome"}',
        "Well.",
        [("f", {"a": "[TOOL_CALLS]"}), WEATHER],
    ),
    ("mistral", "[TOOL_CALLS] (none)", "[TOOL_CALLS] (none)", []),
    (
        "functiongemma",
        "<start_function_call>call:f{a:<escape>x, y}<end_function_call><escape>,b:[1,true,null],"
        "c:{d:-2.5}}<end_function_call>",
        "",
        [("f", {"a": "x, y}<end_function_call>", "b": [1, True, None], "c": {"d": -2.5}})],
    ),
    ("functiongemma", "<start_function_call>call:f{}", "", [("f", {})]),
    (
        "functiongemma",
        "<start_function_call>call:f{a:<end_function_call>",
        "<start_function_call>call:f{a:",
        [],
    ),
    (
        "gemma4",
        'Hm <|tool_call>call:get_weather{city:<|"|>Rome<|"|>}<tool_call|><|tool_call>call:f{}'
        "<tool_call|>",
        "Hm",
        [WEATHER, ("f", {})],
    ),
]


@pytest.mark.parametrize(("tool_format", "answer", "text", "calls"), ANSWERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(places=st.lists(st.integers(0, 500), max_size=8))
def test_an_answer_is_the_same_however_it_is_cut(
    tool_format: str, answer: str, text: str, calls: list[Any], places: list[int]
) -> None:
    found = read(cut(answer, places), tool_format=tool_format)
    assert (found.text, found.values) == (text, calls)


@pytest.mark.parametrize("answer", [answer for _, answer, _, _ in ANSWERS])
@pytest.mark.parametrize("tool_format", FORMATS)
def test_a_character_at_a_time(tool_format: str, answer: str) -> None:
    whole, single = (read(pieces, tool_format=tool_format) for pieces in ([answer], list(answer)))
    assert (whole.text, whole.calls, whole.ids) == (single.text, single.calls, single.ids)


@pytest.mark.parametrize("tool_format", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": "f", ']
            + ['"arguments": {', "}", "]", "[", '"', "\\", " ", "\n", "x", ";", ",", "call:f{"]
            + ["<escape>", "<start_function_call>", "<end_function_call>", "[ARGS]"]
        )
    ),
    places=st.lists(st.integers(0, 500), max_size=8),
)
def test_whatever_a_model_writes_is_read_in_one_way(
    tool_format: str, pieces: list[str], places: list[int]
) -> None:
    answer = "".join(pieces)
    whole = read([answer], tool_format=tool_format)
    other = read(cut(answer, places), tool_format=tool_format)
    assert (whole.text, whole.calls) == (other.text, other.calls)


def test_arguments_are_streamed_as_they_come() -> None:
    reader = parser("hermes")
    assert reader.feed('<tool_call>\n{"name": "f", "argum') == []
    [begins, arguments] = reader.feed('ents": {"a": ')
    assert begins == CallBegins(0, begins.id, "f")  # type: ignore[union-attr]
    assert arguments == CallArguments(0, '{"a": ')
    assert reader.feed('"wor') == [CallArguments(0, '"wor')]
    assert reader.feed('ds"}}') == [CallArguments(0, 'ds"}')]
    assert reader.feed("\n</tool_call>") == reader.end() == []


def test_text_waits_only_for_what_may_be_a_mark() -> None:
    reader = parser("hermes")
    assert reader.feed("one two <") == [TextPart("one two")]
    assert reader.feed("b> three") == [TextPart(" <b> three")]


def test_ids_are_the_same_for_every_reader_and_differ_between_calls() -> None:
    answer = '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'
    first, second = (read([answer], tool_format="mistral").ids for _ in range(2))
    assert first == second
    assert len(set(first)) == 2


@pytest.mark.parametrize("choice", ["none"])
def test_without_tools_marks_are_text(choice: ToolChoice) -> None:
    answer = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read([answer], tool_format="hermes", choice=choice).text == answer


THOUGHTS = [
    ("think", "<think>\nWell, 2 < 3.\n</think>\n\nYes.", "Well, 2 < 3.", "Yes."),
    ("think", " <think></think> Yes.", "", "Yes."),
    ("think", " No <think>x</think>", "", " No <think>x</think>"),
    ("think", "<think>Hm \n", "Hm", ""),
    ("think", "<thin", "", "<thin"),
    ("think-opened", "Well. </thi </think> Yes.", "Well. </thi", "Yes."),
    ("think-opened", "<think>Well.</think>Yes.", "Well.", "Yes."),
    ("think-opened", "Well", "Well", ""),
    ("think-opened", "<thi", "<thi", ""),
    ("channel", "<|channel>thought\nWell.<channel|>Yes.", "Well.", "Yes."),
]


@pytest.mark.parametrize(("reasoning", "answer", "thought", "text"), THOUGHTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(places=st.lists(st.integers(0, 100), max_size=8))
def test_reasoning_is_apart_however_it_is_cut(
    reasoning: str, answer: str, thought: str, text: str, places: list[int]
) -> None:
    found = read(cut(answer, places), reasoning=reasoning)
    assert (found.reasoning, found.text) == (thought, text)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(places=st.lists(st.integers(0, 200), max_size=8))
def test_a_call_behind_reasoning(places: list[int]) -> None:
    answer = '<think>f?</think>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    found = read(cut(answer, places), tool_format="hermes", reasoning="think")
    assert (found.reasoning, found.text, found.values) == ("f?", "", [("f", {})])
