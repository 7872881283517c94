"""Rules of whole answers, in llguidance's Lark syntax. Pure.

A mark that is one token is written by its number: the text of a token never matches a literal.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from broker.wire import Grammar, Job
from worker.engines.base import InvalidRequest
from worker.engines.grammar_source import JSON_OPTIONS, compilable
from worker.engines.schema_rewriting import rewritten
from worker.engines.transformers.guidance.call_rules import CallRules, literal, opening, pattern
from worker.engines.transformers.text.chat_format import (
    HARMONY,
    OPENED,
    REASONING_MARKS,
    ChatFormat,
)
from worker.engines.transformers.text.tool_turns import parsed

_ANYTHING = r"/(.|\n)*/"
_SPACE = r"/[ \n]{0,4}/"
_SPECIAL = re.compile(r"\\.|/|\n", re.DOTALL)  # in a regular expression between slashes
_ESCAPED = {"/": r"\/", "\n": r"\n"}


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
        return self._lark("think final answer", [_answer_rule(own)])

    def grammar(self, own: Grammar | None, *, loose: bool) -> Grammar | None:
        """Calls that must come, or may; None where the format leaves them free."""
        token = self._format.token
        calls = CallRules(self._job, self.tool_format, token, loose=loose).rules()
        if self._job.tool_choice == "required":
            return self._lark("think calls", calls)
        first_mark = opening(self.tool_format)
        if own is not None:
            if not calls:
                calls = [f"calls: {self._mark(first_mark)} {_ANYTHING}"]
            return self._lark("think (calls | final answer)", [*calls, _answer_rule(own)])
        if calls and self._reasoning == HARMONY:
            return self._lark("think (calls | spoken)", [*calls, *self._spoken()])
        if not calls or token(first_mark) is None:
            return None
        return self._lark("think text calls?", [*calls, f"text: {_ANYTHING}"])

    def _lark(self, start: str, rules: list[str]) -> Grammar:
        lines = [f"start: {start}", *self._think(), *rules]
        return Grammar(kind="lark", source="\n".join(lines))

    def _think(self) -> list[str]:
        if not self._reasoning:
            return ['think: ""', 'final: ""']
        if self._reasoning == HARMONY:
            return self._channels()
        begin, end = REASONING_MARKS[self._reasoning.removesuffix(OPENED)]
        thought = f"{_ANYTHING} {self._mark(end)}"
        rules = [f"space: {_SPACE}", 'final: ""']
        if self._format.token(end) is None:
            rules.append(rf"thought[lazy]: /(.|\n)*{pattern(end)}/")
            thought = "thought"
        if self._reasoning.endswith(OPENED):
            return [*rules, f"think: {thought} space"]
        return [*rules, f"think: ({self._mark(begin)} {thought} space)?"]

    def _channels(self) -> list[str]:
        """`think`: messages of reasoning; `final`: what stands before the answer itself."""
        channel, message, end = map(self._mark, ("<|channel|>", "<|message|>", "<|end|>"))
        thought = f'{channel} "analysis" {message} {_ANYTHING} {end}'
        json_kind = f'(" "? {self._mark("<|constrain|>")} "json")?'
        return [
            f'next_message: {self._mark("<|start|>")} "assistant"',
            f"think: ({thought} next_message)*",
            f'final: {channel} "final" {json_kind} {message}',
        ]

    def _spoken(self) -> list[str]:
        """`spoken`: a message to the user, behind which calls may come."""
        channel, message, end = map(self._mark, ("<|channel|>", "<|message|>", "<|end|>"))
        head = f'{channel} ("final" | "commentary") {message}'
        more = f"({end} next_message think (calls | spoken))?"
        return [f"spoken: {head} {_ANYTHING} {more}"]

    def _mark(self, mark: str) -> str:
        token = self._format.token(mark)
        return literal(mark) if token is None else f"<[{token}]>"


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
            return "answer: " + " | ".join(literal(str(option)) for option in options)
        case "lark":
            raise InvalidRequest("tools: not with a grammar")


def _between_slashes(pattern: str) -> str:
    return _SPECIAL.sub(lambda found: _ESCAPED.get(found[0], found[0]), pattern)


def _schema(schema: Any) -> str:
    if isinstance(schema, str) or schema is None:
        raise InvalidRequest("the JSON schema is not valid JSON")
    if isinstance(schema, dict):
        schema = {**rewritten(schema), "x-guidance": JSON_OPTIONS}
    return json.dumps(schema)
