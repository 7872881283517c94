"""One answer, from a server's events to the chunks of a run."""

from typing import Any

import msgspec

from broker.wire import FinishReason, TokenLogprob
from worker.engines.base import Chunk
from worker.engines.openai import logprobs
from worker.engines.openai.body import Plan
from worker.engines.openai.errors import CannotContinue, ServerFailed, error_of_event
from worker.engines.openai.tools import CallDelta, CallText

_DONE = b"[DONE]"
_GIVEN_UP = ("abort", "error")  # finish reasons of a server that gave the answer up


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # counted, not passed on: a chunk has no place for it
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None

    def new_text(self) -> str:
        if self.text is not None:
            return self.text
        return (self.delta and self.delta.content) or ""

    def has_token(self) -> bool:
        delta = self.delta or _Delta()
        said = self.text or delta.content or delta.tool_calls
        return bool(said or delta.reasoning_content or delta.reasoning)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None
    code: Any = None


_decoder = msgspec.json.Decoder(_Event)


class Answer:
    """An answer in progress."""

    def __init__(
        self, plan: Plan, counted: int, address: str, alternatives: int | None = None
    ) -> None:
        """`counted`: tokens that the run's first chunk has counted already; `alternatives`: how
        many to pass on beside each token's logprob, None for no logprobs.
        """
        self.finish: FinishReason | None = None
        self.ended = False  # the server said that nothing follows
        self.begun = False  # it has made a token, passed on or not
        self._plan = plan
        self._repeated = plan.repeated  # what of it is still to come
        self._counted = counted
        self._address = address
        self._alternatives = alternatives
        self._usage = _Usage()
        self._calls = CallText()

    def push(self, data: bytes) -> Chunk:
        """What one event adds.

        Raises EngineError for an event that is an error or unreadable, CannotContinue for another
        answer than the reader has.
        """
        if data == _DONE:
            self.ended = True
            return Chunk()
        event = self._decode(data)
        if event.usage is not None:
            self._usage = event.usage
        text, tokens = "", 0
        token_logprobs: tuple[TokenLogprob, ...] = ()
        for choice in event.choices or ():
            text += self._text_of(choice)
            # At least one token, and with most servers one; the usage at the end corrects it.
            tokens += choice.has_token()
            if self._alternatives is not None and choice.logprobs:
                token_logprobs += logprobs.read(choice.logprobs, self._alternatives)
            if choice.finish_reason:
                self._finish(choice.finish_reason)
        self.begun = self.begun or tokens > 0
        return self._without_repeated(text, tokens, token_logprobs)

    def last(self) -> Chunk:
        """The finish reason, and what corrects the counts.

        Raises CannotContinue, and EngineError for an answer that breaks off.
        """
        if self.finish is None and not self.ended:
            message = f"the connection to {self._address} ended in an answer"
            raise ServerFailed(message, isolated=True)
        if self._repeated and self._plan.exact:
            raise CannotContinue("a new one is shorter than what was delivered")
        tokens = 0
        if self._usage.completion_tokens is not None:
            tokens = self._plan.spent + self._usage.completion_tokens - self._counted
        prompt = max(0, (self._usage.prompt_tokens or 0) - self._plan.spent)
        return Chunk(tokens=tokens, prompt_tokens=prompt, finish=self.finish or "stop")

    def _text_of(self, choice: _Choice) -> str:
        """What it says, and its calls as text."""
        said = choice.new_text()
        text = self._calls.close() + said if said else ""
        if choice.delta is not None and choice.delta.tool_calls:
            text += self._calls.push(choice.delta.tool_calls)
        if choice.finish_reason and choice.finish_reason != "length":
            text += self._calls.close()
        return text

    def _decode(self, data: bytes) -> _Event:
        try:
            event = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"{self._address} sends what is no answer: {error}"
            raise ServerFailed(message, isolated=True) from error
        if event.error is not None or event.object == "error":
            details = event.error or {"message": event.message, "code": event.code}
            raise error_of_event(details, self._address)
        return event

    def _finish(self, reason: str) -> None:
        if reason in _GIVEN_UP:
            message = f"{self._address} gave the answer up ({reason})"
            raise ServerFailed(message, isolated=True)
        self.finish = "length" if reason == "length" else "stop"

    def _without_repeated(
        self, text: str, tokens: int, token_logprobs: tuple[TokenLogprob, ...]
    ) -> Chunk:
        """Without the text that the reader has already."""
        repeating = bool(self._repeated)
        if repeating and text:
            common = _common_prefix(self._repeated, text)
            if common == min(len(self._repeated), len(text)):
                self._repeated = self._repeated[common:]
            elif self._plan.exact:
                raise CannotContinue("a new one begins otherwise")
            else:
                self._repeated = ""
            text = text[common:]
        if self._plan.exact and repeating and not text:
            return Chunk()  # the run's first chunk has counted these
        self._counted += tokens
        return Chunk(text=text, tokens=tokens, logprobs=token_logprobs)


def _common_prefix(first: str, second: str) -> int:
    """How many characters they begin with in common."""
    shorter = min(len(first), len(second))
    for index in range(shorter):
        if first[index] != second[index]:
            return index
    return shorter
