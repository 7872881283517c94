"""What a streamed answer has used so far, where its chunks are to tell that."""

from collections.abc import Mapping

from broker.wire import Delta, Finished


class UsageSoFar:
    """Of all choices; the last chunk of each has the true counts."""

    def __init__(self, prompts: Mapping[str, int]) -> None:
        """`prompts`: the number of the prompt of each job, by its id: one counts once."""
        self._number = prompts
        self._prompt: dict[int, int] = {}  # tokens, by number, once a node has told them
        self._completion: dict[str, int] = {}  # tokens, by job

    def add(self, frame: Delta | Finished) -> None:
        """What a frame tells."""
        name = frame.request_id
        if frame.prompt_tokens:
            self._prompt[self._number[name]] = frame.prompt_tokens
        if isinstance(frame, Finished):
            self._completion[name] = frame.completion_tokens
        else:
            self._completion[name] = self._completion.get(name, 0) + frame.tokens

    def told(self) -> dict[str, int]:
        """As a chunk has it."""
        prompt, completion = sum(self._prompt.values()), sum(self._completion.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
