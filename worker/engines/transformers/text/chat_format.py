"""How a model marks calls of tools and reasoning, by its chat template and its tokenizer.

docs/api.md has the table of formats. A template without tools, or with calls in a format that is
not known here, has them described in a system turn of ours, and its model writes calls as Hermes
does.
"""

import json
import re
from typing import Any

import structlog

from broker.wire import Job
from worker.engines.base import Markup
from worker.engines.transformers.text.tool_schemas import is_expressible
from worker.engines.transformers.text.tool_turns import TurnStyle

log = structlog.get_logger(__name__)

OURS = "hermes"
# The first whose marks are all in the template, and none of the others: what a model writes.
_FORMATS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("harmony", ("<|channel|>", "<|message|>", "<|start|>"), ()),
    ("deepseek-v3", ("<｜tool▁calls▁begin｜>", "```json"), ()),
    ("deepseek-v3.1", ("<｜tool▁calls▁begin｜>",), ()),
    ("qwen3-coder", ("<tool_call>", "<function=", "<parameter="), ()),
    ("glm", ("<tool_call>", "<arg_key>", "<arg_value>"), ()),
    ("gemma4", ("<|tool_call>",), ()),
    ("functiongemma", ("<start_function_call>",), ()),
    ("mistral-named", ("[TOOL_CALLS]", "[ARGS]"), ()),
    ("mistral", ("[TOOL_CALLS]",), ()),
    ("hermes", ("<tool_call>", '"arguments"'), ("<function=", "<arg_key>")),
    ("llama3", ("<|python_tag|>", '"parameters"'), ()),
    ("llama3", ("ipython", '"parameters"'), ()),
)
# Their templates have calls, but do not say which tools there are.
_UNDESCRIBED = ("deepseek-v3", "deepseek-v3.1")
TOOL_CODE = "tool-code"  # the template has no tools at all, but the model was trained to call them
_TOOL_CODE_MARKS = ("<start_of_turn>", "<start_of_image>")  # of Gemma 3's templates
HARMONY = "harmony"  # of the whole answer: reasoning and text, too
HARMONY_FINAL = "<|channel|>final<|message|>"  # before what the user reads
_HARMONY_MARKS = (
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
)
_TOOL_MARKS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "<|python_tag|>",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
REASONING_MARKS = {
    "think": ("<think>", "</think>"),
    "channel": ("<|channel>", "<channel|>"),
}
_ENCODES_ARGUMENTS = re.compile(r"arguments['\"]?\]?\s*\|\s*tojson")
OPENED = "-opened"  # the prompt ends with the first mark


class ChatFormat:
    """Of one model. Used by several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = str(tokenizer.chat_template or "")
        self._added: dict[str, int] = tokenizer.added_tokens_encoder
        self.native = _detect(self._template)
        self._special = set(tokenizer.all_special_ids)
        for number, token in tokenizer.added_tokens_decoder.items():
            if token.special:
                self._special.add(number)
        self._reasoning = {effort: self._find_reasoning(effort) for effort in ("", "none", "low")}

    @property
    def turn_style(self) -> TurnStyle:
        """What the template insists on."""
        joins_text = self.native in _UNDESCRIBED
        encodes = _ENCODES_ARGUMENTS.search(self._template) is not None
        return TurnStyle(
            short_ids=self.native.startswith("mistral"),
            text_arguments=joins_text and not encodes,
            thinking=self.native == HARMONY,
        )

    @property
    def describes_tools(self) -> bool:
        """Whether the template tells the model which tools there are."""
        return self.native not in ("", TOOL_CODE) and "tools" in self._template

    def markup(self, job: Job) -> Markup:
        """How an answer to `job` marks its parts."""
        if job.messages is None:
            return Markup()
        tool_format = ""
        if uses_tools(job):
            tool_format = self.native or OURS
            if job.tool_choice == "required" and not is_expressible(tool_format, job.tools):
                tool_format = OURS
        own = job.sampling.grammar
        if own is not None and own.kind == "lark" and not tool_format:
            return Markup()  # all of the answer is as the grammar says, from its first token on
        return Markup(tool_format, self._reasoning_of(job))

    def token(self, mark: str) -> int | None:
        """The mark's token, if it is one."""
        return self._added.get(mark)

    def shown_tokens(self, job: Job) -> dict[int, str]:
        """Special tokens that are marks, so that an answer's text has them."""
        markup = self.markup(job)
        marks: tuple[str, ...] = ()
        if markup.tool_format:
            marks += _TOOL_MARKS
        if markup.reasoning_format == HARMONY:
            marks += _HARMONY_MARKS
        elif markup.reasoning_format:
            marks += REASONING_MARKS[markup.reasoning_format.removesuffix(OPENED)]
        shown: dict[int, str] = {}
        for mark in marks:
            token = self._added.get(mark)
            if token is not None and token in self._special:
                shown[token] = mark
        return shown

    def _reasoning_of(self, job: Job) -> str:
        effort = job.reasoning_effort
        switched = _switched(job.template_arguments)
        if switched is not None:
            effort = "low" if switched else "none"
        elif effort not in ("", "none"):
            effort = "low"
        found = self._reasoning[effort]
        if found == HARMONY:
            return "" if job.continue_final_message else HARMONY
        if job.continue_final_message:
            return found.removesuffix(OPENED)
        return found

    def _find_reasoning(self, effort: str) -> str:
        """By the marks that the tokenizer or the template has, and the end of a prompt."""
        if all(mark in self._template for mark in _marks_of(HARMONY)):
            return HARMONY
        for name, (begin, end) in REASONING_MARKS.items():
            if self._template and (end in self._template or begin in self._added):
                prompt = self._example(effort).rstrip()
                if prompt.endswith(begin):
                    return name + OPENED
                if prompt.endswith(end):  # reasoning is switched off
                    return ""
                return name
        return ""

    def _example(self, effort: str) -> str:
        turns = [{"role": "user", "content": "x"}]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **template_arguments(effort)
            )
        except Exception as error:
            # a template may raise anything; fate: it is taken for one that opens no reasoning
            log.warning("the chat template refuses an example", effort=effort, reason=str(error))
            return ""
        return str(text)


def uses_tools(job: Job) -> bool:
    """Whether the answer may call any."""
    return bool(job.tools) and job.tool_choice != "none"


def template_arguments(effort: str) -> dict[str, Any]:
    """What templates of models that reason read, under the names that they have for it."""
    if not effort:
        return {}
    reasons = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": reasons, "thinking": reasons}


def _switched(arguments: str) -> bool | None:
    """Whether a request's own arguments for the template switch reasoning on; None: neither."""
    if not arguments:
        return None
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    switches = [values.get("enable_thinking"), values.get("thinking")]
    if False in switches:
        return False
    return True if True in switches else None


def _marks_of(wanted: str) -> tuple[str, ...]:
    return next(marks for name, marks, _ in _FORMATS if name == wanted)


def _detect(template: str) -> str:
    """The format of the template's calls; empty if it has no tools, or others."""
    if "tools" not in template and all(mark in template for mark in _TOOL_CODE_MARKS):
        return TOOL_CODE
    plain = template.replace("\\", "")  # quotes may be escaped
    for name, marks, others in _FORMATS:
        if "tools" not in template and name not in _UNDESCRIBED:
            continue
        if all(mark in plain for mark in marks) and not any(mark in plain for mark in others):
            return name
    return ""
