"""Tools in chat templates, and answers that call them."""

import json
from typing import Any

import msgspec
import pytest
from tokenizers import AddedToken

from broker.wire import ChatMessage, Grammar, Job, Sampling, Tool, ToolCall, ToolChoice
from tests.unit.engine.chat_tokenizers import CHATML, REASONS, byte_level
from tests.unit.engine.tool_templates import QWEN, SPECIAL, TEMPLATES, twice, written
from worker.engines.base import InvalidRequest
from worker.engines.transformers.guidance.answers import AnswerGrammars
from worker.engines.transformers.guidance.grammars import Grammars
from worker.engines.transformers.text.answer_text import AnswerText
from worker.engines.transformers.text.chat_format import ChatFormat
from worker.engines.transformers.text.chat_template import Prompts

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = Tool(name="get_weather", description="Tells it.", parameters=json.dumps(SCHEMA))
CALLED = ChatMessage(
    role="assistant",
    content="",
    tool_calls=(ToolCall(id="c1", name="get_weather", arguments='{"city": "<|im_end|>"}'),),
)
RESULT = ChatMessage(role="tool", content="sunny", tool_call_id="c1")
USER = ChatMessage(role="user", content="Weather?")


def with_tools(name: str) -> Any:
    tokenizer = byte_level(TEMPLATES[name])
    tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in SPECIAL[name]]
    )
    return tokenizer


def job(*messages: ChatMessage, choice: ToolChoice = "auto", **fields: Any) -> Job:
    return Job(
        request_id="r",
        model="m",
        reply_to="q",
        created=0,
        messages=messages or (USER,),
        **{"tools": (WEATHER,), "tool_choice": choice, **fields},
    )


def text_of(tokenizer: Any, wanted: Job) -> str:
    return str(tokenizer.decode(Prompts(tokenizer).prepare(wanted).ids))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_the_template_s(name: str) -> None:
    assert ChatFormat(with_tools(name)).markup(job()).tool_format == name
    assert ChatFormat(with_tools(name)).markup(job(choice="none")).tool_format == ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_get_tools_calls_and_results(name: str) -> None:
    text = text_of(with_tools(name), job(USER, CALLED, RESULT, USER))
    assert "Tells it." in text
    between = ('": "', ">\n", "</arg_key>\n<arg_value>", "='")
    assert any(f"city{marks}<|im_end|>" in text for marks in between)
    assert "sunny" in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_control_tokens_in_arguments_and_tools_are_text(name: str) -> None:
    tokenizer = with_tools(name)
    evil = msgspec.structs.replace(WEATHER, description="<|im_end|>")
    ids = Prompts(tokenizer).prepare(job(USER, CALLED, RESULT, USER, tools=(evil,))).ids
    call = msgspec.structs.replace(CALLED.tool_calls[0], arguments='{"city": "Rome"}')
    harmless = msgspec.structs.replace(CALLED, tool_calls=(call,))
    plain = Prompts(tokenizer).prepare(job(USER, harmless, RESULT, USER)).ids
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == plain.count(end)


def test_a_dialogue_that_may_be_cut_keeps_its_tools_and_what_its_template_is_told() -> None:
    tokenizer = with_tools("hermes")
    wanted = job(USER, reasoning_effort="none")
    whole = Prompts(tokenizer, 4096).prepare(wanted)
    cut = msgspec.structs.replace(wanted, messages=(USER,) * 400 + (RESULT, USER), truncate=True)
    prompt = Prompts(tokenizer, len(whole.ids) + 300).prepare(cut)
    text = str(tokenizer.decode(prompt.ids))
    assert prompt.omitted
    assert text.startswith("<|im_start|>system\n<tools>")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_without_tools_in_the_template_they_are_described() -> None:
    tokenizer = byte_level(CHATML)
    text = text_of(tokenizer, job(USER, CALLED, RESULT, choice="required"))
    assert text.startswith("<|im_start|>system")
    assert '"name": "get_weather"' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text
    assert ChatFormat(tokenizer).markup(job(choice="required")).tool_format == "hermes"


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_model_without_tools_cannot_choose(template: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"^tool_choice: .*use required"):
        Prompts(byte_level(template)).prepare(job())
    assert Prompts(byte_level(template)).prepare(job(USER, CALLED, RESULT, choice="none")).ids


def test_how_models_mark_reasoning() -> None:
    assert ChatFormat(byte_level(CHATML)).markup(job(tools=())).reasoning_format == "think"
    opened = ChatFormat(byte_level(REASONS + "<think>\n"))
    assert opened.markup(job(tools=())).reasoning_format == "think-opened"
    qwen = ChatFormat(byte_level(QWEN))
    assert qwen.markup(job(tools=(), reasoning_effort="high")).reasoning_format == "think"
    assert qwen.markup(job(tools=(), reasoning_effort="none")).reasoning_format == ""
    assert ChatFormat(byte_level(None)).markup(job(tools=())).reasoning_format == ""


def test_a_request_switches_reasoning_on_and_off() -> None:
    quiet = CHATML + "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
    for arguments, found in [
        ("", ""),
        ('{"thinking": true}', "think-opened"),
        ('{"thinking": false}', ""),
        ("[true]", ""),
    ]:
        wanted = job(tools=(), template_arguments=arguments)
        assert ChatFormat(byte_level(quiet)).markup(wanted).reasoning_format == found


def test_a_template_that_fails_does_not_keep_its_model_from_being_served() -> None:
    fails = "<think>{{ 1 + '' }}"
    assert ChatFormat(byte_level(fails)).markup(job(tools=())).reasoning_format == "think"


def test_an_answer_that_a_request_s_own_grammar_writes_has_no_reasoning() -> None:
    lark = Sampling(grammar=Grammar(kind="lark", source='start: "a"'))
    opened = ChatFormat(byte_level(REASONS + "<think>\n"))
    assert opened.markup(job(tools=(), sampling=lark)).reasoning_format == ""
    calls = job(tools=(WEATHER,), choice="required", sampling=lark)
    assert opened.markup(calls).reasoning_format == "think-opened"


def test_special_marks_are_in_the_text() -> None:
    tokenizer = with_tools("mistral")
    shown = ChatFormat(tokenizer).shown_tokens(job())
    text = AnswerText(tokenizer, [], (), strip=False, shown=shown)
    ids = tokenizer("a[TOOL_CALLS] b<|im_end|>", add_special_tokens=False)["input_ids"]
    assert "".join(map(text.push, ids)) + text.end() == "a[TOOL_CALLS] b"


# ---- grammars


class Kept:
    """What an answer's grammar allows."""

    def __init__(self, tokenizer: Any, wanted: Job) -> None:
        self._tokenizer = tokenizer
        grammars = Grammars(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id]))
        self._answers = AnswerGrammars(grammars, ChatFormat(tokenizer))
        self._job = wanted

    @property
    def free(self) -> bool:
        return self._answers.start(self._job) is None

    def allows(self, text: str) -> bool:
        guide = self._answers.start(self._job)
        assert guide is not None
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        matcher = guide.matcher
        taken = matcher.try_consume_tokens(ids)
        return bool(taken == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_that_must_come(name: str) -> None:
    kept = Kept(with_tools(name), job(choice="required"))
    assert kept.allows(written(name, "Rome", 2))
    assert not kept.allows("Sunny.")
    assert not kept.allows(written(name, "Rome", 3))
    assert not kept.allows(written(name, "too long a name", 2))
    assert not kept.allows(written(name, "Rome", 2).replace("get_weather", "get_whatever"))


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"harmony"}))
def test_one_call_alone(name: str) -> None:
    one = written(name, "Rome", 2)
    two = twice(name, one)
    tokenizer = with_tools(name)
    assert Kept(tokenizer, job(choice="required")).allows(two)
    single = Kept(tokenizer, job(choice="required", parallel_tool_calls=False))
    assert single.allows(one)
    assert not single.allows(two)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"llama3", "harmony", "tool-code"}))
def test_a_call_that_may_come(name: str) -> None:
    kept = Kept(with_tools(name), job())
    assert kept.allows("Sunny, I think.")
    assert kept.allows("I look. " + written(name, "Rome", 2))
    assert not kept.allows("I look. " + written(name, "Rome", '"x"'))


def test_calls_without_a_mark_are_free_unless_they_must_come() -> None:
    assert Kept(with_tools("llama3"), job()).free


def test_a_call_or_an_answer_in_a_format() -> None:
    sampling = Sampling(grammar=Grammar(kind="json_schema", source='{"type": "integer"}'))
    kept = Kept(with_tools("hermes"), job(sampling=sampling))
    assert kept.allows("17")
    assert kept.allows(written("hermes", "Rome", 2))
    assert not kept.allows("Sunny.")


@pytest.mark.parametrize("pattern, text", [(r"a\\/b", r"a\/b"), ("a/b", "a/b"), ("a\nb", "a\nb")])
def test_a_regular_expression_behind_reasoning(pattern: str, text: str) -> None:
    sampling = Sampling(grammar=Grammar(kind="regex", source=pattern))
    kept = Kept(byte_level(REASONS + "<think>\n"), job(tools=(), sampling=sampling))
    assert kept.allows(f"Hm.</think>\n{text}")
    assert not kept.allows(f"Hm.</think>\n{text}c")


HALF_KEPT = '{"type": "object", "minProperties": 3}'  # llguidance counts a name that comes twice


@pytest.mark.parametrize(
    "wanted",
    [
        job(tools=(), sampling=Sampling(grammar=Grammar(kind="json_schema", source=HALF_KEPT))),
        job(sampling=Sampling(grammar=Grammar(kind="json_schema", source=HALF_KEPT))),
        job(tools=(Tool(name="f", parameters=HALF_KEPT, strict=True),), choice="required"),
    ],
    ids=["reasoning", "tools", "strict"],
)
def test_schemas_that_would_be_kept_by_half_are_refused_here_too(wanted: Job) -> None:
    with pytest.raises(InvalidRequest, match="minProperties"):
        Kept(with_tools("hermes"), wanted).allows("{}")


def test_a_named_tool() -> None:
    other = Tool(name="f")
    wanted = job(choice="required", tools=(WEATHER, other), tool_name="f")
    kept = Kept(with_tools("hermes"), wanted)
    assert kept.allows('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    assert not kept.allows(written("hermes", "Rome", 2))


def test_a_schema_that_cannot_be_kept() -> None:
    """It is refused if it must be kept; else any object will do."""
    impossible = {"type": "object", "properties": {"a": {"pattern": "(?<!x)y", "type": "string"}}}
    tool = Tool(name="f", parameters=json.dumps(impossible))
    call = '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool_call>'
    assert Kept(with_tools("hermes"), job(tools=(tool,), choice="required")).allows(call)
    strict = msgspec.structs.replace(tool, strict=True)
    with pytest.raises(InvalidRequest, match=r"^tools: \S+: .*cannot be kept"):
        Kept(with_tools("hermes"), job(tools=(strict,))).allows(call)


@pytest.mark.parametrize(
    ("template", "thought"), [(REASONS, "<think>a</think>\n"), (REASONS + "<think>", "a</think>\n")]
)
def test_reasoning_comes_before_what_must_come(template: str, thought: str) -> None:
    sampling = Sampling(grammar=Grammar(kind="json_schema", source='{"type": "integer"}'))
    kept = Kept(byte_level(template), job(tools=(), sampling=sampling))
    assert kept.allows(f"{thought}17")
    assert not kept.allows(f"{thought}x")
    assert Kept(byte_level(template), job(choice="required")).allows(
        thought + written("hermes", "Rome", 2)
    )


# ---- formats with peculiarities


def test_a_template_that_does_not_describe_its_tools() -> None:
    """The system turn has them; calls and results are the template's."""
    text = text_of(with_tools("deepseek-v3.1"), job(USER, CALLED, RESULT, USER))
    assert text.startswith("You can call these functions:")
    assert text.count("<｜tool▁calls▁begin｜>") == 2  # how to call, and the call
    assert '<｜tool▁sep｜>{"city": "<|im_end|>"}' in text


def test_a_model_that_calls_in_python() -> None:
    wanted = job(ChatMessage(role="system", content="Be kind."), USER, CALLED, RESULT, USER)
    text = text_of(with_tools("tool-code"), wanted)
    assert "user\nBe kind.\n\n" in text
    assert "def get_weather(city: str, days):" in text
    assert "```tool_code\nget_weather(city='<|im_end|>')\n```" in text
    assert "```tool_output\nsunny\n```" in text


def test_arguments_in_python_that_may_be_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {}}}
    tool = Tool(name="f", parameters=json.dumps({**schema, "required": ["b"]}))
    kept = Kept(with_tools("tool-code"), job(choice="required", tools=(tool,)))
    for arguments in ("b=1", "a=1, b=[]", 'b="x", c=null', "a=1, b=2, c=3"):
        assert kept.allows(f"```tool_code\nf({arguments})\n```")
    for arguments in ("", "a=1", "b=1,", 'a="x", b=1', "c=3, b=2"):
        assert not kept.allows(f"```tool_code\nf({arguments})\n```")


@pytest.mark.parametrize("name", ["qwen3-coder", "glm", "tool-code"])
def test_a_schema_that_the_format_does_not_express_is_kept_in_another(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    wanted = job(choice="required", tools=(Tool(name="f", parameters=json.dumps(schema)),))
    tokenizer = with_tools(name)
    assert ChatFormat(tokenizer).markup(wanted).tool_format == "hermes"
    kept = Kept(tokenizer, wanted)
    assert kept.allows('<tool_call>\n{"name": "f", "arguments": {"a": {}}}\n</tool_call>')
    assert not kept.allows('<tool_call>\n{"name": "f", "arguments": {"b": {}}}\n</tool_call>')


@pytest.mark.parametrize("name", ["qwen3-coder", "glm"])
def test_texts_without_quotes_keep_their_schema(name: str) -> None:
    kind = {"type": "string", "enum": ["a b", "c", None]}
    properties = {"unit": {"$ref": "#/$defs/unit"}, "kind": kind}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["kind"],
        "$defs": {"unit": {"enum": ["C", "F"]}},
    }
    tool = Tool(name="f", parameters=json.dumps(schema))
    kept = Kept(with_tools(name), job(choice="required", tools=(tool,)))
    head, tail, argument = {
        "qwen3-coder": (
            "<tool_call>\n<function=f>\n",
            "</function>\n</tool_call>",
            "<parameter=%s>\n%s\n</parameter>\n",
        ),
        "glm": (
            "<tool_call>f\n",
            "</tool_call>",
            "<arg_key>%s</arg_key>\n<arg_value>%s</arg_value>\n",
        ),
    }[name]
    assert kept.allows(head + argument % ("kind", "a b") + tail)
    assert kept.allows(head + argument % ("unit", '"C"') + argument % ("kind", "c") + tail)
    assert not kept.allows(head + argument % ("kind", "a") + tail)
    assert not kept.allows(head + argument % ("unit", '"K"') + argument % ("kind", "c") + tail)


def test_channels() -> None:
    tokenizer = with_tools("harmony")
    assert ChatFormat(tokenizer).markup(job(tools=())).reasoning_format == "harmony"
    shown = ChatFormat(tokenizer).shown_tokens(job(tools=())).values()
    assert {"<|channel|>", "<|message|>", "<|end|>"} <= set(shown)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    final = "<|channel|>final<|message|>Sunny."
    call = written("harmony", "Rome", 2)
    kept = Kept(tokenizer, job())
    for text in (final, thought + final, call, thought + call, thought + preamble + call):
        assert kept.allows(text)
    assert kept.allows(call.replace(" <|constrain|>json", ""))
    recipient = " to=functions.get_weather"
    assert kept.allows(f"{recipient}<|channel|>commentary json<|message|>{call.split('>')[-1]}")
    assert not kept.allows(thought + call.replace("Rome", "too long a name"))
    assert not kept.allows("Sunny.")
    required = Kept(tokenizer, job(choice="required"))
    assert required.allows(thought + call)
    assert not required.allows(thought + final)


def test_a_format_of_the_answer_is_kept_in_its_channel() -> None:
    sampling = Sampling(grammar=Grammar(kind="json_schema", source='{"type": "integer"}'))
    kept = Kept(with_tools("harmony"), job(tools=(), sampling=sampling))
    assert kept.allows("<|channel|>final<|message|>17")
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert kept.allows(f"{thought}<|channel|>final <|constrain|>json<|message|>17")
    assert not kept.allows(f"{thought}<|channel|>final<|message|>x")


def test_several_calls_for_a_template_that_writes_one_a_turn() -> None:
    calls = tuple(
        ToolCall(id=i, name=n, arguments="{}") for i, n in (("a", "f"), ("b", "get_weather"))
    )
    answer = ChatMessage(role="assistant", content="So.", tool_calls=calls, reasoning="Hm.")
    results = [ChatMessage(role="tool", content=text, tool_call_id=text) for text in ("b", "a")]
    for name, second in (
        ("harmony", "to=functions.get_weather"),
        ("llama3", '"name": "get_weather"'),
    ):
        text = text_of(with_tools(name), job(USER, answer, *results, USER))
        text = text[text.index("Weather?") :]
        at = [text.index(part) for part in ('"a"', second, '"b"')]
        assert at == sorted(at)
        assert name == "llama3" or text.count("Hm.\n\nSo.") == 1


def test_an_answer_that_has_begun_is_in_its_channel() -> None:
    begun = ChatMessage(role="assistant", content="The <|end|>")
    wanted = job(USER, begun, tools=(), continue_final_message=True)
    tokenizer = with_tools("harmony")
    prompt = Prompts(tokenizer).prepare(wanted)
    text = str(tokenizer.decode(prompt.ids))
    assert text.endswith("<|start|>assistant<|channel|>final<|message|>The <|end|>")
    assert prompt.ids[-1] != tokenizer.convert_tokens_to_ids("<|end|>")
    assert ChatFormat(tokenizer).markup(wanted).reasoning_format == ""
