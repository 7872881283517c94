"""From a dialogue to a text: by the model's own chat template, with the user's text apart from the
template's control tokens.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jinja2
import msgspec

from broker.wire import ChatMessage, Job, Tool
from worker.engines.base import InvalidRequest
from worker.engines.transformers.text import descriptions, tool_turns
from worker.engines.transformers.text.chat_format import (
    HARMONY,
    HARMONY_FINAL,
    OURS,
    TOOL_CODE,
    ChatFormat,
    template_arguments,
    uses_tools,
)
from worker.engines.transformers.text.control_tokens import ControlTokens, Marks
from worker.engines.transformers.text.dialogue import forms, single_calls

Messages = tuple[ChatMessage, ...]


class Rendering(msgspec.Struct, frozen=True):
    """What a template is told beside the messages."""

    generation_prompt: bool = True  # the assistant's turn begins
    special: bool = False  # the tokenizer adds <bos>, too
    opening: str = ""  # what the template would write before an answer that has begun
    prefill: str = ""  # the beginning of the answer, which the request gives
    tools: tuple[Tool, ...] = ()
    arguments: dict[str, Any] = {}


_TEMPLATE_NAMES = frozenset(["messages", "tools", "documents", "bos_token", "eos_token"])


class Renderer:
    """Renders one model's template. Used by one thread."""

    def __init__(self, tokenizer: Any, control: ControlTokens, chat_format: ChatFormat) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._format = chat_format

    def plan(self, job: Job) -> tuple[Messages, Rendering]:
        """The job's turns in the form that the template knows, and what it is told besides.

        Raises InvalidRequest for arguments that are not the template's, and for tools that the
        model may call but cannot.
        """
        messages, prefill = job.messages or (), ""
        if job.continue_final_message and messages and messages[-1].role == "assistant":
            messages, prefill = messages[:-1], messages[-1].content
        tools = job.tools if uses_tools(job) else ()
        if not self._format.describes_tools:
            messages, tools = self._without_tools(job, messages, tools), ()
        if self._format.native == HARMONY:
            messages = single_calls(messages)  # the template writes one call of each turn
        arguments = template_arguments(job.reasoning_effort)
        if job.template_arguments:
            arguments |= _own_arguments(self._tokenizer, job.template_arguments)
        rendering = Rendering(
            generation_prompt=job.add_generation_prompt or bool(prefill),
            special=bool(job.add_special_tokens),
            opening=HARMONY_FINAL if prefill and self._format.native == HARMONY else "",
            prefill=prefill,
            tools=tools,
            arguments=arguments,
        )
        return messages, rendering

    def text(self, messages: Messages, rendering: Rendering) -> str:
        """The dialogue as one text."""
        return self._rendered(messages, rendering, str)

    def careful(self, text: str, messages: Messages, rendering: Rendering) -> tuple[str, Marks]:
        """The same text with marks for the control tokens that are not the template's."""
        marks = Marks()

        def mark(content: str) -> str:
            return self._control.marked(content, marks)

        marked = self.marked(messages, marks)
        if marked == messages and not rendering.tools and not any(map(_has_more, messages)):
            return text, marks
        careful = self._rendered(marked, rendering, mark)
        if marks.restored(careful) != text:
            # The template itself looks for some control tokens, such as the end of an assistant's
            # reasoning, which it leaves out. So in the assistant's turns those stay that are not
            # called special.
            marked = self.marked(messages, marks, reasoning_stays=True)
            careful = self._rendered(marked, rendering, mark)
        return careful, marks

    def marked(
        self, messages: Messages, marks: Marks, *, reasoning_stays: bool = False
    ) -> Messages:
        """The messages with marks in place of control tokens.

        `reasoning_stays`: in the assistant's turns only those called special are marked.
        """
        contents = [message.content for message in messages]
        if not self._control.occur_in(contents):
            return messages
        marked: list[ChatMessage] = []
        for message in messages:
            special_only = reasoning_stays and message.role == "assistant"
            content = self._control.marked(message.content, marks, special_only=special_only)
            marked.append(msgspec.structs.replace(message, content=content))
        return tuple(marked)

    def _without_tools(self, job: Job, messages: Messages, tools: tuple[Tool, ...]) -> Messages:
        """The turns for a template that does not describe the tools.

        Raises InvalidRequest if the model may choose, but does not know how to call any.
        """
        native = self._format.native
        if tools and job.tool_choice == "auto" and not native:
            raise InvalidRequest(
                f"tool_choice: {job.model} has no tools in its chat template, so it cannot decide "
                "by itself; use required, or name a function"
            )
        style = descriptions.STYLES[self._format.markup(job).tool_format or native or OURS]
        if native in ("", TOOL_CODE) and any(map(_is_call_or_result, messages)):
            messages = style.plain(messages)
        return descriptions.with_system(messages, style.describe(tools)) if tools else messages

    def _rendered(
        self, messages: Messages, rendering: Rendering, mark: Callable[[str], str]
    ) -> str:
        """The first form of the dialogue that the template accepts, with all of its system text."""
        refusal: jinja2.TemplateError | None = None
        partial: str | None = None
        for form in forms(messages):
            try:
                text = self._apply(form, rendering, mark)
            except jinja2.TemplateError as error:
                refusal = refusal or error
                continue
            if _says_system(text, form):
                return text
            if partial is None:
                partial = text
        if partial is None:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {refusal}"
            ) from refusal
        return partial

    def _apply(self, messages: Messages, rendering: Rendering, mark: Callable[[str], str]) -> str:
        tools = tool_turns.tool_objects(rendering.tools, mark) if rendering.tools else None
        text = self._tokenizer.apply_chat_template(
            tool_turns.turns(messages, mark, self._format.turn_style),
            tools=tools,
            tokenize=False,
            add_generation_prompt=rendering.generation_prompt,
            **rendering.arguments,
        )
        return str(text)


def _own_arguments(tokenizer: Any, document: str) -> dict[str, Any]:
    """A request's own arguments for a template. Raises InvalidRequest."""
    try:
        arguments = msgspec.json.decode(document, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"chat_template_kwargs: {error}") from error
    reserved = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in arguments:
        if name in reserved or name in _TEMPLATE_NAMES:
            raise InvalidRequest(f"chat_template_kwargs: {name[:60]} is not a request's to choose")
    return arguments


def _is_call_or_result(message: ChatMessage) -> bool:
    return bool(message.tool_calls) or message.role == "tool"


def _has_more(message: ChatMessage) -> bool:
    """Whether it has texts besides its content."""
    return bool(message.tool_calls or message.reasoning or message.name)


def _says_system(text: str, messages: Messages) -> bool:
    """Whether a rendered text has all system turns: some templates drop what they do not know."""
    at = 0
    for message in messages:
        if message.role == "system":
            at = text.find(message.content.strip(), at)
            if at < 0:
                return False
    return True
