"""How likely a prompt's own tokens were, collected chunk by chunk as the prompt is computed.

All logits of a prompt at once would be gigabytes, so a pass computes those of `rows_at_once` tokens
at most.
"""

import torch

from broker.wire import LEAST_LOGPROB, TokenLogprob
from worker.engines.base import InvalidRequest
from worker.engines.transformers.text.token_bytes import TokenBytes

MAX_ENTRIES = 500_000  # of an answer; each of the likeliest tokens is one: some 100 bytes
_CPU_LOGITS, _GPU_LOGITS = 1 << 24, 1 << 25  # of a pass: 64 and 128 MB, and as much again twice


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """How many tokens' logits a pass may compute."""
    most = _CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS
    return max(1, most // vocabulary)


class PromptLogprobs:
    """Of one prompt. Raises InvalidRequest for more than MAX_ENTRIES."""

    def __init__(self, prompt: list[int], top: int, token_bytes: TokenBytes) -> None:
        """`top`: how many of the likeliest tokens to tell in each one's place."""
        if len(prompt) * (1 + top) > MAX_ENTRIES:
            most = MAX_ENTRIES // len(prompt) - 1
            raise InvalidRequest(
                f"logprobs: at most {max(0, most)} for a prompt of {len(prompt)} tokens"
            )
        self._prompt = prompt
        self._top = top
        self._token_bytes = token_bytes
        # Nothing comes before the first token, so nothing is known of it.
        first = TokenLogprob(token_bytes.of(prompt[0]), 0.0, ids=(prompt[0],))
        self._entries = [first]

    @property
    def position(self) -> int:
        """Of the last token that is known; `add` goes on from here."""
        return len(self._entries) - 1

    @property
    def complete(self) -> bool:
        """Whether all of the prompt's tokens are known."""
        return len(self._entries) == len(self._prompt)

    def entries(self) -> tuple[TokenLogprob, ...]:
        """Those so far."""
        return tuple(self._entries)

    def add(self, start: int, logits: torch.Tensor) -> None:
        """`logits` [tokens, vocabulary] after the tokens from `start` on.

        A prompt that lost its memory is computed again, from its beginning.
        """
        following = self._prompt[start + 1 : start + 1 + len(logits)]
        if not following:
            return
        logprobs = logits[: len(following)].float().log_softmax(-1)
        index = torch.tensor(following, device=logits.device)[:, None]
        chosen = logprobs.gather(-1, index)[:, 0].tolist()
        top = logprobs.topk(min(self._top, logprobs.shape[-1]), dim=-1)
        top_ids, top_logprobs = top.indices.tolist(), top.values.tolist()
        del self._entries[start + 1 :]
        for row, token in enumerate(following):
            self._entries.append(self._entry(token, chosen[row], top_ids[row], top_logprobs[row]))

    def _entry(
        self, token: int, logprob: float, top_ids: list[int], top_logprobs: list[float]
    ) -> TokenLogprob:
        top: list[tuple[bytes, float]] = []
        for other, other_logprob in zip(top_ids, top_logprobs, strict=True):
            top.append((self._token_bytes.of(other), _json_safe(other_logprob)))
        return TokenLogprob(
            self._token_bytes.of(token), _json_safe(logprob), tuple(top), (token, *top_ids)
        )


def _json_safe(logprob: float) -> float:
    """JSON knows neither NaN nor infinity."""
    if logprob > LEAST_LOGPROB:
        return round(logprob, 6)
    return LEAST_LOGPROB
