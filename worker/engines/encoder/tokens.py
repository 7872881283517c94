"""Texts to tokens: prompts, pairs, and the limit of the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.wire import Pooling
from worker.engines.base import InvalidRequest, PromptTooLong
from worker.engines.encoder.request import Item, Request

_TOGETHER = 64  # texts that are read in one call: between two, a cancel has effect
_SHOWN = 10  # of a model's prompts, in an error


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads inputs. `longest`: tokens of an input, with the special ones.

    `prompts`: the model's own, by name; `pools_prompt`: whether their tokens are pooled, too.
    """

    tokenizer: Any
    longest: int
    vocabulary: int
    lower: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    pools_prompt: bool = True

    def read(self, request: Request) -> list[Item]:
        """All inputs of the request, in order. Raises InvalidRequest."""
        pooling = request.pooling
        if request.task == "score":
            return list(self._pairs(request))
        prompt = self._prompt(pooling)
        skip = 0 if self.pools_prompt or not prompt else self._prompt_length(prompt)
        items: list[Item] = []
        for start in range(0, len(pooling.inputs), _TOGETHER):
            if request.cancelled:
                return []
            part = pooling.inputs[start : start + _TOGETHER]
            items += self._texts(request, start, part, prompt, skip)
        return items

    def _texts(
        self,
        request: Request,
        start: int,
        inputs: Sequence[str | tuple[int, ...]],
        prompt: str,
        skip: int,
    ) -> Iterator[Item]:
        texts = [self._spelled(prompt + text) for text in inputs if isinstance(text, str)]
        read = iter(self._tokenize(texts, None, request.pooling)["input_ids"] if texts else ())
        for index, text in enumerate(inputs, start):
            if isinstance(text, str):
                yield self._item(request, index, next(read), prompt=skip)
            else:
                yield self._item(request, index, self._checked(text, index))

    def _pairs(self, request: Request) -> Iterator[Item]:
        pooling = request.pooling
        for start in range(0, len(pooling.inputs), _TOGETHER):
            if request.cancelled:
                return
            part = pooling.inputs[start : start + _TOGETHER]
            queries, texts = [], []
            for index, text in enumerate(part, start):
                if not isinstance(text, str):
                    raise InvalidRequest(f"documents[{index}]: must be a text to be scored")
                query = pooling.queries[index if len(pooling.queries) > 1 else 0]
                queries.append(self._spelled(query))
                texts.append(self._spelled(text))
            read = self._tokenize(queries, texts, pooling)
            types = read.get("token_type_ids") or [None] * len(texts)
            for index, (ids, type_ids) in enumerate(zip(read["input_ids"], types, strict=True)):
                yield self._item(request, start + index, ids, type_ids)

    def _tokenize(self, texts: list[str], pairs: list[str] | None, pooling: Pooling) -> Any:
        keep = pooling.truncate
        if keep is None:
            options: dict[str, Any] = {"truncation": False, "verbose": False}
        else:
            most = self.longest if keep < 0 else min(keep, self.longest)
            options = {"truncation": True, "max_length": most}
        return self.tokenizer(texts, pairs, padding=False, **options)

    def _item(
        self,
        request: Request,
        index: int,
        ids: list[int],
        type_ids: list[int] | None = None,
        prompt: int = 0,
    ) -> Item:
        name = "documents" if request.task == "score" else "input"
        keep = request.pooling.truncate
        if keep is not None:
            ids = ids[: self.longest if keep < 0 else min(keep, self.longest)]
        if not ids:
            raise InvalidRequest(f"{name}[{index}]: has no tokens")
        if len(ids) > self.longest:
            raise PromptTooLong(
                f"{name}[{index}] has {len(ids)} tokens, and the model reads at most "
                f"{self.longest}: shorten it, or send truncate_prompt_tokens: -1"
            )
        return Item(request, index, ids, type_ids, min(prompt, len(ids) - 1))

    def _checked(self, ids: tuple[int, ...], index: int) -> list[int]:
        """Raises InvalidRequest for ids of another model's tokenizer."""
        largest = max(ids, default=0)
        if largest >= self.vocabulary:
            raise InvalidRequest(
                f"input[{index}]: there is no token {largest}, as this model has "
                f"{self.vocabulary}: send the text (langchain: check_embedding_ctx_length=False)"
            )
        return list(ids)

    def _prompt(self, pooling: Pooling) -> str:
        if pooling.prompt:
            return pooling.prompt
        if not pooling.prompt_name:
            return self.default_prompt
        prompt = self.prompts.get(pooling.prompt_name)
        if prompt is None:
            names = ", ".join(list(self.prompts)[:_SHOWN]) or "none"
            raise InvalidRequest(
                f"prompt_name: the model has no prompt {pooling.prompt_name!r}; it has: {names}"
            )
        return prompt

    def _prompt_length(self, prompt: str) -> int:
        """Tokens before the text: the last one is a special one if texts end in one."""
        ids = self.tokenizer(self._spelled(prompt), verbose=False)["input_ids"]
        if ids and ids[-1] in self.tokenizer.all_special_ids:
            return len(ids) - 1
        return len(ids)

    def _spelled(self, text: str) -> str:
        return text.lower() if self.lower else text
