"""Rules of calls of tools, in the format that a model writes them in. Pure.

llguidance's Lark syntax. A mark that is one token is written by its number: the text of a token
never matches a literal.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.wire import Grammar, Job, Tool
from worker.engines.grammar_source import JSON_OPTIONS, compilable
from worker.engines.schema_rewriting import rewritten
from worker.engines.transformers.text.tool_schemas import (
    QUOTES_TEXTS,
    SEPARATE,
    Parameter,
    is_expressible,
    parameters,
    text_options,
)
from worker.engines.transformers.text.tool_turns import parsed

_LINE = r'"\n"'  # a line feed
_PERHAPS_LINE = r"/\n?/"
_ANY_CHARACTER = r"(.|\n)"
_NOTHING = '""'
_CALL = "call"


class _Shape(NamedTuple):
    """What stands around calls: marks, or pieces of a rule. `several`: there may be more than one.

    `free`: nothing tells the beginning of a call from a text.
    """

    each: tuple[str, ...]
    between: str = _NOTHING
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    several: bool = True
    free: bool = False

    @property
    def opening(self) -> str:
        """The first mark; empty if there is none."""
        return "" if self.free else (*self.before, *self.each)[0]


_TAGGED = _Shape(("<tool_call>", _LINE, _CALL, _LINE, "</tool_call>"), _LINE)
_DEEPSEEK = _Shape(
    ("<｜tool▁call▁begin｜>", _CALL, "<｜tool▁call▁end｜>"),
    before=("<｜tool▁calls▁begin｜>",),
    after=("<｜tool▁calls▁end｜>",),
)
_SHAPES = {
    "hermes": _TAGGED,
    "qwen3-coder": _TAGGED,
    "glm": _Shape(("<tool_call>", _CALL, "</tool_call>"), _LINE),
    "llama3": _Shape((_CALL,), '"; "', free=True),
    "mistral": _Shape((_CALL,), '", "', before=("[TOOL_CALLS]", "/[ ]?/", '"["'), after=('"]"',)),
    "mistral-named": _Shape(("[TOOL_CALLS]", _CALL)),
    "deepseek-v3": _DEEPSEEK._replace(between=_LINE),
    "deepseek-v3.1": _DEEPSEEK,
    "tool-code": _Shape((_CALL,), _LINE, before=("```tool_code", _LINE), after=(r'"\n```"',)),
    "harmony": _Shape((_CALL,), several=False, free=True),  # its end ends the answer
    "functiongemma": _Shape(("<start_function_call>", _CALL)),
    "gemma4": _Shape(("<|tool_call>", _CALL)),
}


def opening(tool_format: str) -> str:
    """The mark before each call, or before all; empty if there is none."""
    return _SHAPES[tool_format].opening


Token = Callable[[str], int | None]  # of a mark, if it is one


class CallRules:
    """Of one job's calls."""

    def __init__(self, job: Job, tool_format: str, token: Token, *, loose: bool) -> None:
        """`loose`: calls of tools that are not strict take any arguments."""
        self._tools = [tool for tool in job.tools if job.tool_name in ("", tool.name)]
        self._parallel = job.parallel_tool_calls
        self._format = tool_format
        self._token = token
        self._loose = loose

    def rules(self) -> list[str]:
        """`calls`: one or several; no rules where the format leaves them free.

        Raises InvalidRequest for a strict tool whose schema could not be kept.
        """
        if not is_expressible(self._format, tuple(self._tools)):
            return []
        rules: list[str] = []
        for number, tool in enumerate(self._tools):
            if tool.strict and tool.parameters:  # refused with the reason if it cannot be kept
                compilable(Grammar(kind="json_schema", source=tool.parameters))
            if self._format in SEPARATE:
                rules += self._separate(number, tool)
            else:
                rules.append(f"arguments_{number}: %json {_arguments(tool, loose=self._loose)}")
            rules.append(f"call_{number}: {self._call(number, tool)}")
        rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(self._tools))))
        return [*rules, f"calls: {self._calls()}"]

    def mark(self, mark: str) -> str:
        """The mark in a rule."""
        number = self._token(mark)
        return literal(mark) if number is None else f"<[{number}]>"

    def _call(self, number: int, tool: Tool) -> str:
        """A name and its arguments."""
        name, tail = literal(tool.name), ""
        match self._format:
            case "mistral-named":
                head = f"{name} {self.mark('[ARGS]')}"
            case "deepseek-v3":
                fence = literal(f"{tool.name}\n```json\n")
                head = f'"function" {self.mark("<｜tool▁sep｜>")} {fence}'
                tail = literal("\n```")
            case "deepseek-v3.1":
                head = f"{name} {self.mark('<｜tool▁sep｜>')}"
            case "harmony":
                head = self._harmony_head(tool)
            case "qwen3-coder":
                head, tail = literal(f"<function={tool.name}>\n"), '"</function>"'
            case "glm":
                head = f"{name} {_PERHAPS_LINE}"
            case "tool-code":
                head, tail = literal(f"{tool.name}("), '")"'
            case _:
                key = "parameters" if self._format == "llama3" else "arguments"
                head = literal(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
                tail = '"}"'
        return f"{head} arguments_{number} {tail}"

    def _harmony_head(self, tool: Tool) -> str:
        """The recipient stands behind the channel or in the role: both are in the training."""
        channel, message = self.mark("<|channel|>"), self.mark("<|message|>")
        kind = f'(" "? {self.mark("<|constrain|>")}? "json")? " "?'
        recipient = f"to=functions.{tool.name}"
        behind = f"{channel} {literal(f'commentary {recipient}')} {kind} {message}"
        before = f'{literal(f" {recipient}")} {channel} "commentary" {kind} {message}'
        return f"({behind} | {before})"

    def _calls(self) -> str:
        """How calls stand behind each other."""
        shape = _SHAPES[self._format]
        calls = each = self._sequence(shape.each)
        if self._parallel and shape.several:
            calls = f"{each} ({shape.between} {each})*"
        return f"{self._sequence(shape.before)} {calls} {self._sequence(shape.after)}"

    def _sequence(self, pieces: tuple[str, ...]) -> str:
        """Marks, and pieces that are rules already."""
        return " ".join(
            piece if piece == _CALL or piece[0] in '"/' else self.mark(piece) for piece in pieces
        )

    # ---- formats that write each argument by itself

    def _separate(self, number: int, tool: Tool) -> list[str]:
        found = parameters(tool) or []
        rules: list[str] = []
        for index, parameter in enumerate(found):
            name = f"value_{number}_{index}"
            rules += self._value(name, parameter, strict=tool.strict)
            rules.append(f"argument_{number}_{index}: {self._argument(parameter, name)}")
        names = [f"argument_{number}_{index}" for index in range(len(found))]
        if self._format in QUOTES_TEXTS:
            return [*rules, *_with_commas(f"arguments_{number}", names, found)]
        sequence = " ".join(
            name if parameter.required else f"{name}?"
            for name, parameter in zip(names, found, strict=True)
        )
        return [*rules, f"arguments_{number}: {sequence or _NOTHING}"]

    def _argument(self, parameter: Parameter, value: str) -> str:
        match self._format:
            case "qwen3-coder":
                return f"{literal(f'<parameter={parameter.name}>')} {_LINE} {value} {_LINE}"
            case "glm":
                begin, end = self.mark("<arg_key>"), self.mark("</arg_key>")
                key = f"{begin} {literal(parameter.name)} {end}"
                return f"{key} {_PERHAPS_LINE} {self.mark('<arg_value>')} {value} {_PERHAPS_LINE}"
            case _:
                return f"{literal(f'{parameter.name}=')} {value}"

    def _value(self, name: str, parameter: Parameter, *, strict: bool) -> list[str]:
        """The value and what closes it."""
        loose = self._loose and not strict
        if self._format in QUOTES_TEXTS:
            return [f"{name}: %json {_value_schema(parameter.schema, strict=strict, loose=loose)}"]
        close = "</arg_value>" if self._format == "glm" else "\n</parameter>"
        if not parameter.text:
            schema = _value_schema(parameter.schema, strict=strict, loose=loose)
            return [f"{name}_json: %json {schema}", f"{name}: {name}_json {self.mark(close)}"]
        options = text_options(parameter.schema)
        if options is not None and not loose:
            texts = " | ".join(map(literal, options))
            return [f"{name}: ({texts}) {self.mark(close)}"]
        text = _ANY_CHARACTER + _counted(parameter.schema, loose=loose)
        if self._token(close) is None:
            return [f"{name}[lazy]: /{text}{pattern(close)}/"]
        return [f"{name}: /{text}/ {self.mark(close)}"]


def literal(text: str) -> str:
    """A text in a rule."""
    return json.dumps(text)


def pattern(text: str) -> str:
    """A text in a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\n", "n")


def _with_commas(name: str, names: list[str], found: list[Parameter]) -> list[str]:
    """Arguments in order with commas between; those that are not required may be left out."""
    rules = [f"{name}: {name}_first_0"]
    for index, (argument, parameter) in enumerate(zip(names, found, strict=True)):
        first, more = f"{name}_first_{index}", f"{name}_more_{index}"
        skip_first, skip_more = f" | {name}_first_{index + 1}", "?"
        if parameter.required:
            skip_first = skip_more = ""
        rules.append(f"{first}: {argument} {name}_more_{index + 1}{skip_first}")
        if index:
            rules.append(f'{more}: (", " {argument}){skip_more} {name}_more_{index + 1}')
    last = len(names)
    return [*rules, f"{name}_first_{last}: {_NOTHING}", f"{name}_more_{last}: {_NOTHING}"]


def _counted(schema: dict[str, Any], *, loose: bool) -> str:
    if loose or not {"minLength", "maxLength"} & set(schema):
        return "*"
    return f"{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"


def _value_schema(schema: dict[str, Any], *, strict: bool, loose: bool) -> str:
    options = {**JSON_OPTIONS, "lenient": not strict}
    return json.dumps({**({} if loose else rewritten(schema)), "x-guidance": options})


def _arguments(tool: Tool, *, loose: bool) -> str:
    """The JSON schema of a call's arguments, with what llguidance is to make of it."""
    schema: Any = parsed(tool.parameters)
    if schema is None:
        schema = {"additionalProperties": False}
    if not isinstance(schema, dict) or (loose and not tool.strict):
        schema = {}
    options = {**JSON_OPTIONS, "lenient": not tool.strict}
    return json.dumps({**rewritten({"type": "object", **schema}), "x-guidance": options})
