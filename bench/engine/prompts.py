"""Prompts of a given number of tokens, for any tokenizer, each different."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from broker.wire import Job
from worker.engines.transformers.text.chat_template import prepare

_WORDS = 400  # different words: enough that no two prompts begin alike
_CANDIDATES = 20_000


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens in and out. The first `shared` words of the prompt are those of its whole load."""

    prompt: int
    answer: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """The same as text and as tokens, a <bos> included."""

    text: str
    ids: tuple[int, ...]


class Prompts:
    """Makes prompts of words that are one token each."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises BenchError."""
        self._tokenizer = tokenizer
        self._rng = random.Random(1)
        self._words = self._single_tokens()
        (word, *_) = self._words
        whole = self.ids(word)
        self._before = tuple(whole[: len(whole) - 1])  # a <bos>
        self._shared: list[str] = []

    def ids(self, text: str) -> list[int]:
        """As the engine reads it."""
        job = Job(request_id="bench", model="bench", reply_to="bench", created=0.0, prompt=text)
        return prepare(self._tokenizer, job).ids

    def make(self, requests: Sequence[Request], *, again: bool = False) -> list[Prompt]:
        """Random words for each. `again`: behind the prefix of the last call, else a new one.
        Raises BenchError.
        """
        if not again:
            self._shared = self._choose(max(request.shared for request in requests))
        batch = []
        for request in requests:
            own = request.prompt - len(self._before) - request.shared
            if own < 1:
                raise BenchError(f"a prompt of {request.prompt} tokens has no room for a word")
            batch.append(self._of(self._shared[: request.shared] + self._choose(own)))
        return batch

    def next_turn(self, prompt: Prompt, text: str, ids: Sequence[int], own: int) -> Prompt:
        """The conversation so far, its answer and so many new words."""
        words = self._choose(own)
        following = " ".join([prompt.text, text.strip(), *words])
        return Prompt(following, (*prompt.ids, *ids, *(self._words[word] for word in words)))

    def _of(self, words: list[str]) -> Prompt:
        text = " ".join(words)
        ids = [self._words[word] for word in words]
        first = self.ids(words[0])[-1]  # no space before it
        return Prompt(text, (*self._before, first, *ids[1:]))

    def _choose(self, count: int) -> list[str]:
        return self._rng.choices(list(self._words), k=count)

    def _single_tokens(self) -> dict[str, int]:
        """Words that cost exactly one token at the beginning and inside of a text; and that."""
        words: dict[str, int] = {}
        vocabulary = len(self._tokenizer)
        around = len(self._plain_ids("the the"))
        for token in self._rng.sample(range(vocabulary), min(vocabulary, _CANDIDATES)):
            word = self._tokenizer.decode([token], skip_special_tokens=True).strip()
            if not (word.isalnum() and word.isascii()):
                continue
            inside = self._plain_ids(f"the {word} the")
            if len(inside) - around == len(self._plain_ids(word)) == 1:
                words[word] = inside[around // 2]
            if len(words) == _WORDS:
                break
        if not words:
            raise BenchError("this tokenizer has no word of one token")
        return words

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
