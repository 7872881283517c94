"""One choice of /v1/completions: its text, and its prompt where the request wants it echoed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api.openai import logprobs
from api.requests.build import Prompt
from broker.wire import AnyFrame, Delta, Finished, TokenLogprob

_REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants to see of each choice."""

    echo: bool
    logprobs: int | None  # alternatives beside each token of the text; None: no logprobs
    prompt_logprobs: int | None  # vLLM's, beside the text


class TextChoice:
    """A choice as its frames arrive."""

    def __init__(self, index: int, prompt: Prompt, wanted: Wanted) -> None:
        self.index = index
        self.end: Finished | None = None
        self.entries: list[TokenLogprob] = []  # of the answer's tokens
        self.prompt_entries: list[TokenLogprob] = []
        self._prompt = prompt
        self._wanted = wanted
        self._texts: list[str] = []

    @property
    def mean_logprob(self) -> float:
        """By which the best of several is known; an empty answer is the least likely."""
        if not self.entries:
            return float("-inf")
        return sum(entry.logprob for entry in self.entries) / len(self.entries)

    def take(self, frame: AnyFrame) -> None:
        """Its next frame."""
        if isinstance(frame, Delta):
            self._texts.append(frame.text)
            self.entries += frame.logprobs
            self.prompt_entries += frame.prompt_logprobs
        elif isinstance(frame, Finished):
            self.end = frame

    def whole(self, index: int) -> dict[str, Any]:
        """The choice, once it has ended."""
        if self.end is None:
            raise AssertionError("a stream ended without an end frame")
        text = "".join(self._texts)
        shown: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
        if self._wanted.echo:
            shown |= {"text": self.prompt_text() + text}
        if self._wanted.logprobs is not None:
            shown["logprobs"] = self._logprobs()
        if self._wanted.prompt_logprobs is not None:
            shown["prompt_logprobs"] = logprobs.for_prompt(
                self.prompt_entries, self._wanted.prompt_logprobs
            )
        shown["finish_reason"] = _REASONS[self.end.reason]
        return shown

    def prompt_text(self) -> str:
        """The prompt as it was sent; of token ids, the text that they are."""
        if isinstance(self._prompt, str):
            return self._prompt
        return _text(self.prompt_entries)

    def prompt_logprobs(self) -> dict[str, Any] | None:
        """Those of the echoed prompt, which the text begins with."""
        if self._wanted.logprobs is None:
            return None
        return logprobs.for_text(
            self.prompt_entries, self._prompt_offset(), self._wanted.logprobs, begins=True
        )

    def _logprobs(self) -> dict[str, Any] | None:
        entries, offset = self.entries, 0
        if self._wanted.echo:
            entries, offset = self.prompt_entries + self.entries, self._prompt_offset()
        return logprobs.for_text(entries, offset, self._wanted.logprobs, begins=self._wanted.echo)

    def _prompt_offset(self) -> int:
        """Where the tokens of an echoed prompt begin: before its text, if <bos> is among them."""
        text = _text(self.prompt_entries)
        if isinstance(self._prompt, str) and text.endswith(self._prompt):
            return len(self._prompt) - len(text)
        return 0


def best(choices: list[TextChoice], count: int) -> list[TextChoice]:
    """The `count` likeliest by their mean logprob, in the order in which they were asked for."""
    if len(choices) <= count:
        return choices
    ranked = sorted(choices, key=lambda choice: choice.mean_logprob, reverse=True)[:count]
    return sorted(ranked, key=lambda choice: choice.index)


def usage(prompts: list[list[TextChoice]]) -> dict[str, Any]:
    """Token counts of the choices of each prompt, which counts once."""
    prompt = completion = cached = 0
    for choices in prompts:
        prompt += max((end.prompt_tokens for end in _ends(choices)), default=0)
        completion += sum(end.completion_tokens for end in _ends(choices))
        cached += min((end.cached_tokens for end in _ends(choices)), default=0)
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return counts


def _ends(choices: list[TextChoice]) -> Iterator[Finished]:
    return (choice.end for choice in choices if choice.end is not None)


def _text(entries: list[TokenLogprob]) -> str:
    return b"".join(entry.token for entry in entries).decode(errors="replace")
