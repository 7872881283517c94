"""The choices of /v1/completions as a stream of chunks."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from api import errors
from api.http import sse
from api.openai import logprobs
from api.openai.text_choice import TextChoice, Wanted, usage
from api.openai.usage_so_far import UsageSoFar
from api.requests import position
from api.requests.complete import RunningAnswer
from api.requests.errors import job_failure
from api.requests.journey import trail_comment
from broker.wire import Delta, Failed, Finished, Start, Waiting

DONE = b"data: [DONE]\n\n"


class TextChunks:
    """Makes the chunks of one request."""

    def __init__(
        self,
        head: dict[str, Any],
        prompts: list[list[TextChoice]],
        wanted: Wanted,
        *,
        with_usage: bool,
        usage_so_far: UsageSoFar | None = None,
    ) -> None:
        """`usage_so_far`: if each chunk is to tell it."""
        self.prompts = prompts
        self.wanted = wanted
        self.with_usage = with_usage
        self.usage_so_far = usage_so_far
        self._head = head

    def count(self, frame: Delta | Finished) -> None:
        """A frame of one of the choices has come."""
        if self.usage_so_far is not None:
            self.usage_so_far.add(frame)

    def text(self, index: int, text: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        """A part of a choice's text, with its logprobs."""
        return self._chunk({"index": index, "text": text, "logprobs": told, "finish_reason": None})

    def last(self, index: int, reason: str) -> dict[str, Any]:
        """The end of a choice."""
        return self._chunk({"index": index, "text": "", "logprobs": None, "finish_reason": reason})

    def usage(self) -> dict[str, Any]:
        """What follows the ends of all choices, if requested."""
        return {**self._head, "choices": [], "usage": usage(self.prompts)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self.with_usage:
            chunk["usage"] = self.usage_so_far.told() if self.usage_so_far else None
        return chunk


class _Streamed:
    """A choice whose text is sent as it comes, behind its echoed prompt."""

    def __init__(self, choice: TextChoice, chunks: TextChunks) -> None:
        self._choice = choice
        self._chunks = chunks
        self._template = sse.Template(partial(chunks.text, choice.index))
        self._characters = 0  # of the text so far
        self._echoes = chunks.wanted.echo  # the prompt is still to be sent

    def delta(self, delta: Delta) -> bytes:
        """The events of its next frame. A prompt's own frames come first, several of them."""
        if delta.prompt_logprobs:
            self._choice.prompt_entries += delta.prompt_logprobs
        if not delta.text and not delta.logprobs:
            return b""
        echoed = self._echo()
        offset = self._characters
        self._characters += len(delta.text)
        told, wanted = None, self._chunks.wanted.logprobs
        if delta.logprobs and wanted is not None:
            told = logprobs.for_text(delta.logprobs, offset, wanted)
        elif self._chunks.usage_so_far is None:
            return echoed + self._template.event(delta.text)
        return echoed + sse.data(self._chunks.text(self._choice.index, delta.text, told))

    def last(self, end: Finished) -> bytes:
        """The events of its end."""
        self._choice.take(end)
        reason = "length" if end.reason == "length" else "stop"
        return self._echo() + sse.data(self._chunks.last(self._choice.index, reason))

    def _echo(self) -> bytes:
        if not self._echoes:
            return b""
        self._echoes = False
        text = self._choice.prompt_text()
        self._characters += len(text)
        told = self._choice.prompt_logprobs()
        return sse.data(self._chunks.text(self._choice.index, text, told))


async def events(
    running: RunningAnswer, chunks: TextChunks, choices: dict[str, TextChoice]
) -> AsyncGenerator[bytes]:
    """The frames of all choices as events, as they come."""
    if running.waiting:
        yield sse.comment(f"waiting: {running.waiting}")
    streamed = {name: _Streamed(choice, chunks) for name, choice in choices.items()}
    ended = 0
    async for frame in running.frames:
        match frame:
            case Delta():
                chunks.count(frame)
                data = streamed[frame.request_id].delta(frame)
                if data:
                    yield data
            case Start():
                if frame.trail:
                    yield trail_comment(frame)
            case None:
                yield sse.comment("keep-alive")
            case Waiting():
                yield sse.comment(f"waiting: {position.describe(frame)}")
            case Finished():
                ended += 1
                chunks.count(frame)
                last = streamed[frame.request_id].last(frame)
                if ended == len(streamed):
                    last += sse.data(chunks.usage()) + DONE if chunks.with_usage else DONE
                yield last
            case Failed():
                yield sse.data(errors.body("/v1/", job_failure(frame, "prompt")))
                return
