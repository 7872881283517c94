"""Texts of a given number of tokens, for any tokenizer, each different."""

import random
import time
from typing import Any

from bench.errors import BenchError
from broker.wire import Job, Sampling
from worker.engines.transformers.text.chat_template import prepare

_WORDS = 400  # different words: enough that no two prompts begin alike
_CANDIDATES = 20_000
_TRIES = 50


class NoPrompt(BenchError):
    """This tokenizer gives no text of so many tokens."""


class Prompts:
    """Makes texts and jobs. Ids are those that the engine reads, a <bos> included."""

    def __init__(self, tokenizer: Any, vocabulary: int, model: str, seed: int = 1) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._rng = random.Random(seed)
        self._count = 0
        self._words = self._single_tokens(vocabulary)

    def ids(self, text: str) -> list[int]:
        return prepare(self._tokenizer, self._job(text, 1)).ids

    def text(self, tokens: int) -> str:
        """Random words of so many tokens together. Raises NoPrompt."""
        words = tokens
        for _ in range(_TRIES):
            text = " ".join(self._rng.choice(self._words) for _ in range(max(1, words)))
            missing = tokens - len(self.ids(text))
            if not missing:
                return text
            words = max(1, words + missing)
        raise NoPrompt(f"no text of {tokens} tokens was found for this tokenizer")

    def job(self, prompt: int, answer: int) -> Job:
        """A request with a prompt and an answer of so many tokens."""
        return self._job(self.text(prompt), answer)

    def _job(self, text: str, answer: int) -> Job:
        self._count += 1
        return Job(
            request_id=f"bench-{self._count}",
            model=self._model,
            reply_to="bench",
            created=time.time(),
            prompt=text,
            sampling=Sampling(max_tokens=answer, temperature=0.0),
        )

    def _single_tokens(self, vocabulary: int) -> list[str]:
        """Words that cost exactly one token inside a text."""
        words: list[str] = []
        around = len(self._plain_ids("the the"))
        for token in self._rng.sample(range(vocabulary), min(vocabulary, _CANDIDATES)):
            word = self._tokenizer.decode([token], skip_special_tokens=True).strip()
            if not (word.isalnum() and word.isascii()):
                continue
            if len(self._plain_ids(f"the {word} the")) == around + 1:
                words.append(word)
            if len(words) == _WORDS:
                break
        if not words:
            raise NoPrompt("this tokenizer has no word of one token")
        return words

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
