"""Rules of whole answers, in llguidance's Lark syntax. Pure.

A mark that is one token is written by its number: the text of a token never matches a literal.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from broker.wire import Grammar, Job, Tool
from worker.engines.base import InvalidRequest
from worker.engines.grammar_source import JSON_OPTIONS, compilable
from worker.engines.transformers.text.chat_format import OPENED, REASONING_MARKS, ChatFormat
from worker.engines.transformers.text.tool_turns import parsed

_ANYTHING = r"/(.|\n)*/"
_SPACE = r"/[ \n]{0,4}/"
_SPECIAL = re.compile(r"\\.|/|\n", re.DOTALL)  # in a regular expression between slashes
_ESCAPED = {"/": r"\/", "\n": r"\n"}
_OPENING = {
    "hermes": "<tool_call>",
    "mistral": "[TOOL_CALLS]",
    "mistral-named": "[TOOL_CALLS]",
    "functiongemma": "<start_function_call>",
    "gemma4": "<|tool_call>",
}  # the mark before each call, or before all


@dataclass(frozen=True, slots=True)
class Wanted:
    """Grammars, the best first. `optional`: without any of them the answer is good, too."""

    grammars: tuple[Grammar, ...] = ()
    optional: bool = False


def answer_grammars(job: Job, chat_format: ChatFormat) -> Wanted:
    """What the answer to `job` must look like. Raises InvalidRequest."""
    rules = _Rules(job, chat_format)
    own = job.sampling.grammar
    if not rules.tool_format:
        if own is None:
            return Wanted()
        return Wanted((rules.with_reasoning(own),))
    if own is not None and own.kind == "lark" and job.tool_choice == "auto":
        raise InvalidRequest(
            "tools: not with a grammar; use a JSON schema, or tool_choice required"
        )
    exact, loose = rules.grammar(own, loose=False), rules.grammar(own, loose=True)
    found = [grammar for grammar in (exact, loose) if grammar is not None]
    if all(tool.strict for tool in job.tools):
        found = found[:1]
    optional = job.tool_choice == "auto" and own is None
    return Wanted(tuple(found), optional and not any(tool.strict for tool in job.tools))


class _Rules:
    """Of one job's answer."""

    def __init__(self, job: Job, chat_format: ChatFormat) -> None:
        self._job = job
        self._format = chat_format
        self.tool_format, self._reasoning = chat_format.markup(job)

    def with_reasoning(self, own: Grammar) -> Grammar:
        """A request's own grammar, behind the reasoning of a model that reasons."""
        if not self._reasoning or own.kind == "lark":
            return own
        return self._lark("think answer", [_answer_rule(own)])

    def grammar(self, own: Grammar | None, *, loose: bool) -> Grammar | None:
        """Calls that must come, or may; None where the format leaves them free."""
        calls = self._calls(loose=loose)
        if self._job.tool_choice == "required":
            return self._lark("think calls", calls)
        if own is not None:
            if not calls:
                calls = [f"calls: {self._mark(_OPENING[self.tool_format])} {_ANYTHING}"]
            return self._lark("think (calls | answer)", [*calls, _answer_rule(own)])
        if not calls or self.tool_format not in _OPENING:
            return None
        if self._format.token(_OPENING[self.tool_format]) is None:
            return None
        return self._lark("think text calls?", [*calls, f"text: {_ANYTHING}"])

    def _lark(self, start: str, rules: list[str]) -> Grammar:
        lines = [f"start: {start}", *self._think(), *rules]
        return Grammar(kind="lark", source="\n".join(lines))

    def _think(self) -> list[str]:
        if not self._reasoning:
            return ['think: ""']
        begin, end = REASONING_MARKS[self._reasoning.removesuffix(OPENED)]
        thought = f"{_ANYTHING} {self._mark(end)}"
        rules = [f"space: {_SPACE}"]
        if self._format.token(end) is None:
            rules.append(rf"thought[lazy]: /(.|\n)*{_pattern(end)}/")
            thought = "thought"
        if self._reasoning.endswith(OPENED):
            return [*rules, f"think: {thought} space"]
        return [*rules, f"think: ({self._mark(begin)} {thought} space)?"]

    def _mark(self, mark: str) -> str:
        token = self._format.token(mark)
        return _literal(mark) if token is None else f"<[{token}]>"

    # ---- calls

    def _calls(self, *, loose: bool) -> list[str]:
        """`calls`: one or several; no rules for formats that have no JSON."""
        key = "parameters" if self.tool_format == "llama3" else "arguments"
        tools = [tool for tool in self._job.tools if self._job.tool_name in ("", tool.name)]
        rules: list[str] = []
        for number, tool in enumerate(tools):
            rules.append(f"arguments_{number}: %json {_arguments(tool, loose=loose)}")
            if self.tool_format == "mistral-named":
                head = f"{_literal(tool.name)} {self._mark('[ARGS]')}"
                rules.append(f"call_{number}: {head} arguments_{number}")
            else:
                head = _literal(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
                rules.append(f'call_{number}: {head} arguments_{number} "}}"')
        rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
        shape = self._shape()
        return [*rules, f"calls: {shape}"] if shape else []

    def _shape(self) -> str:
        """How calls stand behind each other."""
        opening = _OPENING.get(self.tool_format, "")
        match self.tool_format:
            case "hermes":
                close = self._mark("</tool_call>")
                call, separator = f'{self._mark(opening)} "\\n" call "\\n" {close}', '"\\n"'
            case "llama3":
                call, separator = "call", '"; "'
            case "mistral":
                more = "" if not self._job.parallel_tool_calls else '(", " call)*'
                return f'{self._mark(opening)} /[ ]?/ "[" call {more} "]"'
            case "mistral-named":
                call, separator = f"{self._mark(opening)} call", '""'
            case _:
                return ""
        if not self._job.parallel_tool_calls:
            return call
        return f"{call} ({separator} {call})*"


def _arguments(tool: Tool, *, loose: bool) -> str:
    """The JSON schema of a call's arguments, with what llguidance is to make of it.

    Raises InvalidRequest for one that is strict and could not be kept.
    """
    if tool.strict and tool.parameters:
        compilable(Grammar(kind="json_schema", source=tool.parameters))
    schema: Any = parsed(tool.parameters)
    if schema is None:
        schema = {"additionalProperties": False}
    if not isinstance(schema, dict) or (loose and not tool.strict):
        schema = {}
    options = {**JSON_OPTIONS, "lenient": not tool.strict}
    return json.dumps({"type": "object", **schema, "x-guidance": options})


def _answer_rule(own: Grammar) -> str:
    """Raises InvalidRequest for what would be refused without reasoning and tools, too."""
    compilable(own)
    match own.kind:
        case "json_object":
            return f"answer: %json {_schema({'type': 'object'})}"
        case "json_schema":
            return f"answer: %json {_schema(parsed(own.source))}"
        case "regex":
            return f"answer: /{_between_slashes(own.source)}/"
        case "choice":
            options = parsed(own.source)
            if not isinstance(options, list) or not options:
                raise InvalidRequest("the choice must be a list of texts")
            return "answer: " + " | ".join(_literal(str(option)) for option in options)
        case "lark":
            raise InvalidRequest("tools: not with a grammar")


def _between_slashes(pattern: str) -> str:
    return _SPECIAL.sub(lambda found: _ESCAPED.get(found[0], found[0]), pattern)


def _schema(schema: Any) -> str:
    if isinstance(schema, str) or schema is None:
        raise InvalidRequest("the JSON schema is not valid JSON")
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": JSON_OPTIONS}
    return json.dumps(schema)


def _literal(text: str) -> str:
    return json.dumps(text)


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
