"""Texts of a given number of tokens, for any tokenizer, each different."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from broker.wire import Job, Sampling
from worker.engines.transformers.text.chat_template import prepare

_WORDS = 400  # different words: enough that no two prompts begin alike
_CANDIDATES = 20_000


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens in and out. The first `shared` words of the prompt are those of its whole load."""

    prompt: int
    answer: int
    shared: int = 0


class Prompts:
    """Makes texts and jobs. Tokens are those that the engine reads, a <bos> included."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        """Raises BenchError."""
        self._tokenizer = tokenizer
        self._model = model
        self._rng = random.Random(1)
        self._count = 0
        self._words = self._single_tokens()
        self._special = len(self.ids(self._words[0])) - 1

    def ids(self, text: str) -> list[int]:
        return prepare(self._tokenizer, self.job(text, 1)).ids

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """Random words for each. Every call has a shared prefix of its own. Raises BenchError."""
        shared = max(request.shared for request in requests)
        prefix = self._rng.choices(self._words, k=shared)
        texts = []
        for request in requests:
            own = request.prompt - self._special - request.shared
            if own < 1:
                raise BenchError(f"a prompt of {request.prompt} tokens has no room for a word")
            words = self._rng.choices(self._words, k=own)
            texts.append(" ".join(prefix[: request.shared] + words))
        return texts

    def job(self, text: str, answer: int) -> Job:
        """A greedy request for an answer of so many tokens."""
        self._count += 1
        return Job(
            request_id=f"bench-{self._count}",
            model=self._model,
            reply_to="bench",
            created=time.time(),
            prompt=text,
            sampling=Sampling(max_tokens=answer, temperature=0.0),
        )

    def jobs(self, requests: Sequence[Request]) -> list[Job]:
        jobs = []
        for request, text in zip(requests, self.texts(requests), strict=True):
            jobs.append(self.job(text, request.answer))
        return jobs

    def _single_tokens(self) -> list[str]:
        """Words that cost exactly one token, at the beginning and inside of a text."""
        words: list[str] = []
        vocabulary = len(self._tokenizer)
        around = len(self._plain_ids("the the"))
        for token in self._rng.sample(range(vocabulary), min(vocabulary, _CANDIDATES)):
            word = self._tokenizer.decode([token], skip_special_tokens=True).strip()
            if not (word.isalnum() and word.isascii()):
                continue
            inside = len(self._plain_ids(f"the {word} the")) - around
            if inside == len(self._plain_ids(word)) == 1:
                words.append(word)
            if len(words) == _WORDS:
                break
        if not words:
            raise BenchError("this tokenizer has no word of one token")
        return words

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
