"""What a server says of one answer, event by event, as the chunks of a run."""

from typing import Any

import msgspec

from broker.wire import FinishReason, TokenLogprob
from worker.engines.base import Chunk, EngineError
from worker.engines.openai import logprobs
from worker.engines.openai.body import Plan
from worker.engines.openai.errors import in_stream

_DONE = b"[DONE]"
_FINISHES: dict[str, FinishReason] = {
    "length": "length"
}  # everything else that is an end is "stop"
_LOST = ("abort", "error")  # the server gave the answer up


class CannotContinue(EngineError):
    """The server cannot go on from what the reader has in this way; nothing was told."""

    def __init__(self, message: str) -> None:
        super().__init__("engine", f"the answer cannot be continued: {message}")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # counted, not told: nothing here has a place for it
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


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
    """One answer on its way. `told`: tokens that the run has told before its text; `alternatives`: how many are wanted
    for each token's logprob, None for no logprobs.
    """

    def __init__(
        self, plan: Plan, told: int, address: str, alternatives: int | None = None
    ) -> None:
        self.finish: FinishReason | None = None
        self.ended = False  # the server said that nothing follows
        self.begun = False  # it has made a token, told or not
        self._plan = plan
        self._again = plan.again
        self._told = told
        self._address = address
        self._alternatives = alternatives
        self._usage = _Usage()

    def push(self, data: bytes) -> Chunk:
        """What one event adds. Raises EngineError for one that says so or is none, CannotContinue for another answer
        than the reader has.
        """
        if data == _DONE:
            self.ended = True
            return Chunk()
        try:
            event = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError(
                "engine",
                f"{self._address} sends what is no answer: {error}",
                retryable=True,
                alone=True,
            ) from error
        if event.error is not None or event.object == "error":
            raise in_stream(
                event.error or {"message": event.message, "code": event.code}, self._address
            )
        if event.usage is not None:
            self._usage = event.usage
        text, tokens = "", 0
        likely: tuple[TokenLogprob, ...] = ()
        for choice in event.choices or ():
            delta = choice.delta or _Delta()
            text += (delta.content if choice.text is None else choice.text) or ""
            # One token at least, and with most servers one; the usage at the end corrects it.
            tokens += bool(
                delta.content or choice.text or delta.reasoning_content or delta.reasoning
            )
            if self._alternatives is not None and choice.logprobs:
                likely += logprobs.read(choice.logprobs, self._alternatives)
            if choice.finish_reason:
                self._finished(choice.finish_reason)
        self.begun = self.begun or tokens > 0
        return self._new(text, tokens, likely)

    def last(self) -> Chunk:
        """The end: the finish reason, and what corrects the counts. Raises CannotContinue, and EngineError for an
        answer that just breaks off.
        """
        if self.finish is None and not self.ended:
            raise EngineError(
                "engine",
                f"the connection to {self._address} ended in an answer",
                retryable=True,
                alone=True,
            )
        if self._again and self._plan.exact:
            raise CannotContinue("a new one is shorter than what was delivered")
        tokens = 0
        if self._usage.completion_tokens is not None:
            tokens = self._plan.spent + self._usage.completion_tokens - self._told
        prompt = max(0, (self._usage.prompt_tokens or 0) - self._plan.spent)
        return Chunk(tokens=tokens, prompt_tokens=prompt, finish=self.finish or "stop")

    def _finished(self, reason: str) -> None:
        if reason in _LOST:
            raise EngineError(
                "engine",
                f"{self._address} gave the answer up ({reason})",
                retryable=True,
                alone=True,
            )
        self.finish = _FINISHES.get(reason, "stop")

    def _new(self, text: str, tokens: int, likely: tuple[TokenLogprob, ...]) -> Chunk:
        """Without what the reader has."""
        had_all = not self._again
        if self._again and text:
            same = _common(self._again, text)
            if same < min(len(self._again), len(text)):
                if self._plan.exact:
                    raise CannotContinue("a new one begins otherwise")
                self._again = ""
            else:
                self._again = self._again[same:]
            text = text[same:]
        if self._plan.exact and not had_all and not text:
            return Chunk()  # the first chunk of the run has counted these
        self._told += tokens
        return Chunk(text=text, tokens=tokens, logprobs=likely)


def _common(first: str, second: str) -> int:
    """How many characters they begin with in common."""
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)
