"""Texts of a wanted number of tokens, for any tokenizer, each different."""

import random
import time
from typing import Any

from broker.wire import Job, Sampling
from worker.engines.transformers.text.chat_template import prepare

_WORDS = 400  # different words to draw from: enough that no two prompts begin alike
_LOOKED_AT = 20_000
_TRIES = 50


class NoPrompt(Exception):
    """This tokenizer gives no text of so many tokens."""


class Prompts:
    """Makes texts and jobs. The ids are those that the engine reads, with the <bos> of those who have one."""

    def __init__(self, tokenizer: Any, vocabulary: int, model: str, seed: int = 1) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._random = random.Random(seed)
        self._made = 0
        self._words = self._single_tokens(vocabulary)

    def ids(self, text: str) -> list[int]:
        """As the engine reads them."""
        return prepare(self._tokenizer, self._job(text, 1)).ids

    def text(self, tokens: int) -> str:
        """Random words that make so many tokens together. Raises NoPrompt."""
        wanted = tokens
        for _ in range(_TRIES):
            text = " ".join(self._random.choice(self._words) for _ in range(max(1, wanted)))
            missing = tokens - len(self.ids(text))
            if not missing:
                return text
            wanted = max(1, wanted + missing)
        raise NoPrompt(f"no text of {tokens} tokens was found for this tokenizer")

    def job(self, prompt: int, answer: int, temperature: float = 0.0) -> Job:
        """A request with a prompt and an answer of so many tokens."""
        return self._job(self.text(prompt), answer, temperature)

    def _job(self, text: str, answer: int, temperature: float = 0.0) -> Job:
        self._made += 1
        sampling = Sampling(max_tokens=answer, temperature=temperature)
        return Job(
            request_id=f"bench-{self._made}", model=self._model, reply_to="bench", created=time.time(), prompt=text,
            sampling=sampling,
        )  # fmt: skip

    def _single_tokens(self, vocabulary: int) -> list[str]:
        """Words that cost exactly one token inside a text."""
        some = self._random.sample(range(vocabulary), min(vocabulary, _LOOKED_AT))
        before = len(self._plain_ids("the the"))
        words = []
        for token in some:
            word = self._tokenizer.decode([token], skip_special_tokens=True).strip()
            if (
                word.isalnum()
                and word.isascii()
                and len(self._plain_ids(f"the {word} the")) == before + 1
            ):
                words.append(word)
            if len(words) == _WORDS:
                break
        if not words:
            raise NoPrompt("this tokenizer has no word of one token")
        return words

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
