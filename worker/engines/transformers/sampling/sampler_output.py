"""What one sampling pass chose: on the device at once, on the host once it has got there."""

from collections.abc import Sequence as Many
from typing import NamedTuple

import msgspec
import torch

from broker.wire import LEAST_LOGPROB

# Marks in place of a token. What the model computed is NaN or +inf somewhere or -inf everywhere:
NOT_FINITE = -1
NO_CHOICE = -2  # the same, of what the row's own biases and penalties made of the logits


class SampledToken(msgspec.Struct, frozen=True):
    """A token id, or NOT_FINITE or NO_CHOICE in its place.

    `logprob`, and `top` (ids and logprobs of the likeliest, best first), only if requested.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Logprobs(msgspec.Struct, frozen=True):
    """Logprobs of the rows whose sequences requested them, on the device."""

    rows: list[int]
    counts: list[int]  # of the likeliest tokens that each row requested
    sampled: torch.Tensor  # [rows]: of the sampled token
    top_ids: torch.Tensor  # [rows, the greatest count]
    top: torch.Tensor  # the logprobs of `top_ids`


class SamplerOutput:
    """One step's tokens; row i belongs to the i-th slot that was sampled."""

    def __init__(self, marked: torch.Tensor, logprobs: list[Logprobs]) -> None:
        """`marked` [rows]: int64 tokens, with NOT_FINITE and NO_CHOICE among them."""
        self.tokens = marked.clamp(min=0)  # on the device; 0 for a mark
        self._marked = marked
        self._logprobs = logprobs
        self._host_tokens = _download(marked)
        self._host_logprobs = [_HostLogprobs.download(block) for block in logprobs]
        self._token_ids: list[int] | None = None
        self._row_logprobs: dict[int, _RowLogprobs] = {}
        self._arrived: torch.cuda.Event | None = None
        if marked.device.type == "cuda":
            self._arrived = torch.cuda.Event(blocking=True)  # else the host would spin
            self._arrived.record(torch.cuda.current_stream(marked.device))

    @staticmethod
    def failed_row(device: torch.device) -> "SamplerOutput":
        """One row for which sampling failed."""
        return SamplerOutput(torch.full((1,), NOT_FINITE, device=device), [])

    @staticmethod
    def concatenated(parts: "list[SamplerOutput]") -> "SamplerOutput":
        """The rows of all parts, in order."""
        logprobs: list[Logprobs] = []
        first_row = 0
        for part in parts:
            for block in part._logprobs:
                rows = [first_row + row for row in block.rows]
                logprobs.append(msgspec.structs.replace(block, rows=rows))
            first_row += len(part.tokens)
        return SamplerOutput(torch.cat([part._marked for part in parts]), logprobs)

    def wait(self) -> None:
        """Returns when the tokens are on the host. Raises whatever the device reports."""
        if self._arrived is not None:
            self._arrived.synchronize()
        self._token_ids = self._host_tokens.tolist()
        for block in self._host_logprobs:
            self._row_logprobs.update(block.by_row())

    def sampled(self, row: int) -> SampledToken:
        """That row's token, once `wait` has returned."""
        if self._token_ids is None:
            raise RuntimeError("the tokens have not been waited for")
        token = self._token_ids[row]
        logprobs = self._row_logprobs.get(row)
        if logprobs is None:
            return SampledToken(token)
        return SampledToken(token, _json_safe(logprobs.sampled), logprobs.best())


class _RowLogprobs(NamedTuple):
    """A row's logprobs as they came from the device; `top_ids` and `top` may hold too many."""

    requested: int
    sampled: float
    top_ids: Many[int]
    top: Many[float]

    def best(self) -> tuple[tuple[int, float], ...]:
        """Ids and logprobs of the `requested` likeliest tokens."""
        logprobs = [_json_safe(logprob) for logprob in self.top[: self.requested]]
        return tuple(zip(self.top_ids[: self.requested], logprobs, strict=True))


class _HostLogprobs(NamedTuple):
    """`Logprobs` on the host, once the device has written them."""

    rows: list[int]
    counts: list[int]
    sampled: torch.Tensor
    top_ids: torch.Tensor
    top: torch.Tensor

    @staticmethod
    def download(block: Logprobs) -> "_HostLogprobs":
        return _HostLogprobs(
            block.rows,
            block.counts,
            _download(block.sampled),
            _download(block.top_ids),
            _download(block.top),
        )

    def by_row(self) -> dict[int, _RowLogprobs]:
        sampled = self.sampled.tolist()
        top_ids = self.top_ids.tolist()
        top = self.top.tolist()
        by_row: dict[int, _RowLogprobs] = {}
        for index, row in enumerate(self.rows):
            by_row[row] = _RowLogprobs(
                self.counts[index], sampled[index], top_ids[index], top[index]
            )
        return by_row


def _download(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; a GPU writes it there later."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _json_safe(logprob: float) -> float:
    """JSON knows neither NaN nor infinity."""
    if logprob > LEAST_LOGPROB:
        return round(logprob, 6)
    return LEAST_LOGPROB
