"""Answers taken apart: calls of tools and reasoning, however the text is cut."""

import itertools
import json
import time
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
    sendable,
    without_reasoning,
)
from api.requests.parts.formats import FORMATS
from broker.wire import Job, Start, Tool, ToolChoice

WEATHER_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"enum": ["C", "F"]},
        "places": {"type": "array", "items": {"type": "string"}},
    },
}
TOOLS = (Tool(name="f"), Tool(name="get_weather", parameters=json.dumps(WEATHER_SCHEMA)))


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
    (
        "qwen3-coder",
        'I look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\n 5 <b>\n\n"x"\\\n'
        "</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=units>\nC\n</parameter>\n"
        '<parameter=places>\n["a", "b"]\n</parameter>\n</function>\n</tool_call>\nDone.',
        "I look.Done.",
        [
            (
                "get_weather",
                {"city": ' 5 <b>\n\n"x"\\', "days": 2, "units": "C", "places": ["a", "b"]},
            )
        ],
    ),
    (
        "qwen3-coder",
        "<tool_call>\n<function=f>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>"
        "<parameter=city>Rome</parameter></function></tool_call>",
        "",
        [("f", {}), WEATHER],
    ),
    (
        "qwen3-coder",
        "<function=f>\n<parameter=a>\nnull\n</parameter>\n<parameter=b>\nfree text\n</parameter>\n",
        "",
        [("f", {"a": None, "b": "free text"})],
    ),
    (
        "qwen3-coder",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        "",
        [WEATHER],
    ),
    ("qwen3-coder", "<tool_call>\nno call", "<tool_call>\nno call", []),
    ("qwen3-coder", "<tool_call>\n<function=f", "<tool_call>\n<function=f", []),
    ("qwen3-coder", "a <function> b", "a <function> b", []),
    (
        "glm",
        "Well.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n"
        "<tool_call>f</tool_call>",
        "Well.",
        [("get_weather", {"city": "Rome", "days": 2}), ("f", {})],
    ),
    (
        "glm",
        "<tool_call>f<arg_key>a</arg_key><arg_value>[1, {}]</arg_value><arg_key>b</arg_key>"
        "<arg_value></arg_value></tool_call>",
        "",
        [("f", {"a": [1, {}], "b": ""})],
    ),
    ("glm", "<tool_call>two words</tool_call>", "<tool_call>two words</tool_call>", []),
    (
        "deepseek-v3",
        "Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n'
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Well.",
        [WEATHER, ("f", {})],
    ),
    (
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{"a": "}"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [WEATHER, ("function", {"a": "}"})],
    ),
    (
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>",
        [],
    ),
    (
        "tool-code",
        'I look.\n```tool_code\nget_weather(city="Rome")\n'
        "print(f(a=[1, 'b', (None, True)]))\n```\nDone.",
        "I look.Done.",
        [WEATHER, ("f", {"a": [1, "b", [None, True]]})],
    ),
    (
        "tool-code",
        '```tool_code\nx = api.get_weather("a ```` b\\n\\u00fc\\/", -2, places=["c",],)\n```',
        "",
        [("get_weather", {"city": "a ```` b\nü/", "days": -2, "places": ["c"]})],
    ),
    (
        "tool-code",
        '```tool_code\nget_weather(city="""a\n\'b\'""", days=1.5e3)',
        "",
        [("get_weather", {"city": "a\n'b'", "days": 1500.0})],
    ),
    ("tool-code", "```tool_code\nimport os\n```", "```tool_code\nimport os\n```", []),
    ("tool-code", "```tool_code\nf(1e999)\n```", "```tool_code\nf(1e999)\n```", []),
    ("tool-code", '```tool_code\nf(a="\\ud800")\n```', "", [("f", {"a": "\ufffd"})]),
    (
        "tool-code",
        "```tool_code\nf(x)\n```\nLike so:\n```tool_code\nf()\n```",
        "```tool_code\nf(x)\n```\nLike so:",
        [("f", {})],
    ),
    (
        "qwen3-coder",
        f"<function=f><parameter={'a ' * 200}",
        f"<parameter={'a ' * 200}".rstrip(),
        [("f", {})],
    ),
    ("tool-code", "```python\nf()\n```", "```python\nf()\n```", []),
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
            + ["<function=f>", "</function>", "<parameter=a>", "</parameter>", "<arg_key>", "5"]
            + ["</arg_key>", "<arg_value>", "</arg_value>", "<｜tool▁calls▁begin｜>", "```"]
            + [
                "<｜tool▁call▁begin｜>",
                "f<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "```tool_code",
                "f(",
            ]
            + ["<｜tool▁calls▁end｜>", "a=", ")", "get_weather", "city"]
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


HARMONY = [
    (
        "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Sunny \n<|return|>",
        "They ask.",
        "Sunny",
        [],
    ),
    (
        "<|channel|>analysis<|message|>Two. <|end|><|start|>assistant"
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Rome"} <|call|><|start|>assistant to=functions.f'
        "<|channel|>commentary json<|message|><|call|>",
        "Two.",
        "I look.",
        [WEATHER, ("f", {})],
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
        "<|end|><|channel|>final<|message|>c",
        "a\n\nb",
        "c",
        [],
    ),
    ("Plain < text", "", "Plain < text", []),
    ("<|channel|>final<|message|>a <|b|> c", "", "a <|b|> c", []),
    ("<|channel|>analysis", "", "", []),
]


@pytest.mark.parametrize(("answer", "thought", "text", "calls"), HARMONY)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(places=st.lists(st.integers(0, 500), max_size=8))
def test_channels_are_apart_however_they_are_cut(
    answer: str, thought: str, text: str, calls: list[Any], places: list[int]
) -> None:
    formats = {"tool_format": "harmony", "reasoning": "harmony"}
    for pieces in (cut(answer, places), list(answer)):
        found = read(pieces, **formats)
        assert (found.reasoning, found.text, found.values) == (thought, text, calls)


@pytest.mark.parametrize("text", ["Plain.", "Plain. " * 200])
@pytest.mark.parametrize("begin", ["<|channel|>final<|message|>Yes.<|end|>", ""])
def test_text_without_a_channel_is_not_lost(begin: str, text: str) -> None:
    for pieces in ([begin + text], list(begin + text)):
        found = read(pieces, reasoning="harmony").text
        assert found.removeprefix("Yes.").strip() == text.strip()


def test_a_channel_without_a_message_ends() -> None:
    answer = "<|channel|>" + "x" * 2000 + "<|channel|>"
    for pieces in ([answer], list(answer)):
        assert read(pieces, reasoning="harmony").text == "x" * 2000


def test_a_block_that_is_no_call_is_told_at_its_end() -> None:
    block = "```tool_code\nprint(1)\n```"
    assert Read(parser("tool-code").feed(block)).text == block


def test_a_name_that_never_ends_is_text() -> None:
    """Each piece would be read again with all before it, for as long as the model goes on."""
    reader = parser("glm")
    parts = reader.feed("<tool_call>f")
    for _ in range(1200):
        parts += reader.feed("f")
    assert Read(parts).text == "<tool_call>" + "f" * 1201


def processor_time(begin: str, pieces: int, **formats: Any) -> float:
    reader = parser(**formats)
    started = time.process_time()
    reader.feed(begin)
    for _ in range(pieces):
        reader.feed("\n")
    reader.end()
    return time.process_time() - started


@pytest.mark.parametrize(
    ("begin", "formats"),
    [
        ("", {"tool_format": "llama3"}),
        ("a text", {"tool_format": "hermes"}),
        ("<tool_call>", {"tool_format": "hermes"}),
        ('<tool_call>{"name": "f", "arguments": {}}', {"tool_format": "hermes"}),
        ("<tool_call>f", {"tool_format": "glm"}),
        ("<think>", {"reasoning": "think"}),
        ("<think>so</think>", {"reasoning": "think"}),
        ("", {"reasoning": "harmony"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value.values()),
)
def test_white_space_without_end_is_read_once(begin: str, formats: dict[str, str]) -> None:
    """Sixteen times the pieces took 256 times as long, as each was searched with all before it."""
    few = min(processor_time(begin, 2_000, **formats) for _ in range(3))
    assert processor_time(begin, 32_000, **formats) < 80 * few


@pytest.mark.parametrize(
    ("tool_format", "begun"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather", "argu'),
        ("hermes", "<tool_call>"),
        ("mistral", '[TOOL_CALLS] [{"name": "f'),
        ("glm", "<tool_call>get_wea"),
        ("qwen3-coder", "<tool_call>\n<function=get"),
    ],
)
def test_of_a_call_that_is_cut_at_its_name_nothing_is_told(tool_format: str, begun: str) -> None:
    reader = parser(tool_format)
    told = Read(reader.feed(f"Let me see.\n{begun}") + reader.end(cut=True))
    assert (told.text, told.calls) == ("Let me see.", [])
    ended = parser(tool_format)
    assert begun in Read(ended.feed(begun) + ended.end()).text


@pytest.mark.parametrize("begun", ["<tool", '<tool_call>\n{"na'])
def test_an_answer_of_calls_alone_has_no_text_however_it_ends(begun: str) -> None:
    reader = parser("hermes", choice="required")
    assert reader.feed(begun) + reader.end() == []


def test_arguments_that_are_cut_are_told() -> None:
    reader = parser("hermes")
    text = '<tool_call>{"name": "f", "arguments": {"a": 1'
    assert Read(reader.feed(text) + reader.end(cut=True)).calls == [("f", '{"a": 1')]


def test_a_template_gets_no_channels() -> None:
    answer = "<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>Yes."
    assert sendable(answer, "harmony") == without_reasoning(answer, "harmony") == "Yes."
    assert sendable("<think>Hm.</think>Yes.", "think") == "<think>Hm.</think>Yes."


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(
        st.sampled_from(
            ["<|channel|>", "analysis", "final", "commentary", "<|message|>", "<|end|>", "<|call|>"]
            + ["<|start|>", "assistant", " to=functions.f", " ", "x", "<", "{}", "<|constrain|>"]
        )
    ),
    places=st.lists(st.integers(0, 500), max_size=8),
)
def test_whatever_comes_in_channels_is_read_in_one_way(
    pieces: list[str], places: list[int]
) -> None:
    answer = "".join(pieces)
    whole = read([answer], reasoning="harmony")
    other = read(cut(answer, places), reasoning="harmony")
    assert (whole.reasoning, whole.text) == (other.reasoning, other.text)
    assert (whole.calls, whole.ids) == (other.calls, other.ids)


def test_without_tools_a_call_in_a_channel_is_text() -> None:
    answer = "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    found = read([answer], reasoning="harmony", choice="none")
    assert (found.text, found.calls) == ("{}", [])


def test_long_texts_of_a_call_are_streamed() -> None:
    reader = parser("qwen3-coder")
    head = "<tool_call>\n<function=get_weather>\n<parameter=city>\n"
    assert Read(reader.feed(head)).calls == [("get_weather", '{"city": "')]
    assert reader.feed("Ro") == [CallArguments(0, "Ro")]
    assert reader.feed('m"e') == [CallArguments(0, 'm\\"e')]
    assert reader.feed("\n</param") == []
    assert reader.feed("eter>") == [CallArguments(0, '"')]


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
