"""The next token of every row, each by its own settings and its own dice, without waiting for the device.

The order in which settings count is the one that servers of OpenAI's interface have in common (vLLM's): biases,
repetition penalty, frequency and presence penalty, temperature, min-p, top-k, top-p.
A row's token depends on its logits, its settings and its dice alone, whatever else is computed with it: see `narrow`.
"""

import math
import random
from collections.abc import Sequence as Many
from typing import Literal, NamedTuple

import msgspec
import torch

from broker.wire import LEAST_LOGPROB, Sampling
from worker.engines.transformers.sampling.penalties import Biases, History, penalised, upload
from worker.engines.transformers.sampling.truncation import (
    SHORTLIST,
    Limits,
    by_halving,
    by_shortlist,
    draw,
    kept,
    weigh,
    within_top_k,
)

_CACHED = 1 << 18  # logits: a megabyte
NOT_FINITE = (
    -1
)  # in place of a token: the model's logits have NaN or +inf among them, or are -inf everywhere
NO_CHOICE = -2  # the same of what the row's own biases and penalties made of them
_COLDEST = 1e-5  # temperatures below it are 0: logits divided by them would be infinite
# plain: from all tokens; open: min-p or top-p alone; short: with a top-k up to SHORTLIST; wide: with a greater one
Method = Literal["greedy", "plain", "open", "short", "wide"]


class Picked(msgspec.Struct, frozen=True):
    """A chosen token, or NOT_FINITE or NO_CHOICE in its place.

    `logprob`, and `top` (ids and logprobs of the likeliest, best first), only if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Dice:
    """One job's random numbers: one draw a token, so the same seed gives the same text in any company."""

    def __init__(self, seed: int | None, skip: int = 0) -> None:
        """`skip`: tokens another node has drawn already, when a job is continued."""
        self._random = random.Random(seed)
        for _ in range(skip if seed is not None else 0):
            self._random.random()
        self.next = self._random.random()  # what the next draw gives, uniform in [0, 1)

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        drawn, self.next = self.next, self._random.random()
        return drawn


class _Odds(msgspec.Struct):
    """The logprobs of the rows whose sequences asked for them, on the device."""

    rows: list[int]
    counts: list[int]  # of the likeliest that each asked for
    chosen: torch.Tensor  # [rows]
    likeliest: torch.Tensor  # [rows, the greatest count]: ids
    logprobs: torch.Tensor  # and their logprobs


class Choices:
    """One step's tokens: on the device at once, on the host when they have got there."""

    def __init__(self, tokens: torch.Tensor, marked: torch.Tensor, odds: _Odds | None) -> None:
        """`marked`: the tokens, with NOT_FINITE and NO_CHOICE among them."""
        self.tokens = tokens  # [rows] int64, on the device; 0 where there is none
        self._odds = odds
        tensors = (
            (marked,) if odds is None else (marked, odds.chosen, odds.likeliest, odds.logprobs)
        )
        self._host = [_download(tensor) for tensor in tensors]
        self._picks: list[_Pick] | None = None
        self._arrived: torch.cuda.Event | None = None
        if tokens.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tokens.device))

    @staticmethod
    def none(device: torch.device) -> "Choices":
        """One row for which nothing was chosen."""
        nothing = torch.zeros(1, dtype=torch.int64, device=device)
        return Choices(nothing, nothing - 1, None)

    @staticmethod
    def joined(parts: "list[Choices]") -> "Choices":
        """The rows of all, in order."""
        return _JoinedChoices(parts)

    def wait(self) -> None:
        """Returns when the tokens are on the host. Raises whatever the device reports."""
        if self._arrived is not None:
            self._arrived.synchronize()
        tokens, *likely = (tensor.tolist() for tensor in self._host)
        self._picks = [_Pick(token) for token in tokens]
        if self._odds is not None:
            for row, count, *found in zip(self._odds.rows, self._odds.counts, *likely, strict=True):
                self._picks[row] = _Pick(tokens[row], count, *found)

    def picked(self, row: int) -> Picked:
        """That row's token, once `wait` has returned."""
        if self._picks is None:
            raise RuntimeError("the tokens have not been waited for")
        return self._picks[row].picked()

    def read(self) -> list[Picked]:
        """A Picked for each row; waits for the device."""
        self.wait()
        return [self.picked(row) for row in range(len(self.tokens))]


class _JoinedChoices(Choices):
    """Rows that were chosen one by one."""

    def __init__(self, parts: list[Choices]) -> None:
        self.tokens = torch.cat([part.tokens for part in parts])
        self._parts = parts

    def wait(self) -> None:
        for part in self._parts:
            part.wait()

    def picked(self, row: int) -> Picked:
        return self._parts[row].picked(0)


class _Pick(NamedTuple):
    """A row as it came from the device: its token; how many logprobs were wanted, if any; the token's; the likeliest
    tokens and theirs.
    """

    token: int
    wanted: int | None = None
    logprob: float = 0.0
    likeliest: Many[int] = ()
    logprobs: Many[float] = ()

    def picked(self) -> Picked:
        if self.wanted is None:
            return Picked(self.token)
        top = zip(self.likeliest[: self.wanted], map(_told, self.logprobs), strict=False)
        return Picked(self.token, _told(self.logprob), tuple(top))


class _Place(msgspec.Struct):
    """Who has a slot."""

    sampling: Sampling
    method: Method
    adjusts: bool  # its logits are changed first
    dice: Dice


class Sampler:
    """Chooses tokens for up to `slots` sequences of a model that knows `vocabulary` tokens.

    On a GPU nothing here waits for the device: settings and random numbers go up through pinned memory, and what
    comes back is waited for in `Choices.wait`. One call may follow another before the first was read.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._places: list[_Place | None] = [None] * slots
        self._history = History(slots, vocabulary, device)
        self._biases = Biases(slots, device)
        self._narrow = {
            "open": by_shortlist if device.type == "cpu" else by_halving,
            "short": within_top_k,
            "wide": by_halving,
        }

    def assign(self, slot: int, sampling: Sampling, prompt: list[int], answer: list[int]) -> None:
        """A sequence takes `slot`, whoever had it before. `answer`: its tokens so far, when it is continued."""
        counts = penalised(sampling)
        self._biases.begin(slot, sampling.logit_bias)
        if counts:
            self._history.begin(slot, prompt, answer)
        method = _method(sampling, self._vocabulary)
        dice = Dice(sampling.seed, skip=len(answer))
        self._places[slot] = _Place(sampling, method, counts or bool(sampling.logit_bias), dice)

    def choose(self, logits: torch.Tensor, slots: list[int]) -> Choices:
        """The next tokens: row i of `logits` [rows, vocabulary] belongs to slots[i], no slot comes twice.

        Rows that sample draw once from their dice. `logits` stay as they are.
        """
        choices = self.propose(logits, slots)
        for slot in slots:
            self.accept(slot)
        self.count(choices, slots)
        return choices

    def propose(self, logits: torch.Tensor, slots: list[int]) -> Choices:
        """As `choose`, but nothing has changed until `accept` and `count`: if it raises, it can be called again, also
        for some of the rows.
        """
        marked = self._tokens(logits, slots)
        tokens = marked.clamp(min=0)
        return Choices(tokens, marked, self._odds(logits, tokens, slots))

    def accept(self, slot: int) -> None:
        """The slot's sequence gets the token that was proposed."""
        place = self._place(slot)
        if place.method != "greedy":
            place.dice.draw()

    def adjusts(self, slot: int) -> bool:
        """Whether the slot's sequence has biases or penalties."""
        return self._place(slot).adjusts

    def count(self, choices: Choices, slots: list[int]) -> None:
        """Those with biases or penalties get their tokens into the history of what was said."""
        rows = [row for row, slot in enumerate(slots) if self.adjusts(slot)]
        if rows:
            index = upload(rows, torch.int64, self._device)
            places = upload([slots[row] for row in rows], torch.int64, self._device)
            self._history.add(places, choices.tokens.index_select(0, index))

    def _tokens(self, logits: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """Each row's token, NOT_FINITE or NO_CHOICE."""
        groups: dict[tuple[Method, bool], list[int]] = {}
        for row, place in enumerate(map(self._place, slots)):
            groups.setdefault((place.method, place.adjusts), []).append(row)
        tokens = torch.empty(len(slots), dtype=torch.int64, device=logits.device)
        for (method, adjusts), rows in groups.items():
            light = method == "greedy" and not adjusts
            for part in [rows] if light else self._parts(rows):
                if len(part) == len(slots):
                    tokens = self._chosen(method, logits, slots, adjusts=adjusts)
                else:
                    index = upload(part, torch.int64, logits.device)
                    mine = [slots[row] for row in part]
                    chosen = self._chosen(
                        method, logits.index_select(0, index), mine, adjusts=adjusts
                    )
                    tokens.index_copy_(0, index, chosen)
        return tokens

    def _odds(self, logits: torch.Tensor, tokens: torch.Tensor, slots: list[int]) -> _Odds | None:
        """Of the model's own distribution, whatever the settings made of it."""
        wanted = {
            row: count
            for row, slot in enumerate(slots)
            if (count := self._place(slot).sampling.logprobs) is not None
        }
        if not wanted:
            return None
        most = min(max(wanted.values()), logits.shape[-1])
        found = []
        for part in self._parts(list(wanted)):
            index = upload(part, torch.int64, logits.device)
            logprobs = logits.index_select(0, index).float().log_softmax(-1)
            chosen = logprobs.gather(-1, tokens.index_select(0, index)[:, None])[:, 0]
            best = logprobs.topk(most, dim=-1)
            found.append((chosen, best.indices, best.values))
        return _Odds(list(wanted), list(wanted.values()), *map(torch.cat, zip(*found, strict=True)))

    def _parts(self, rows: list[int]) -> list[list[int]]:
        """The rows that are computed at once: on a CPU no more than its caches hold, and memory that need not be asked
        for again and again, which takes longer than all the arithmetic.
        """
        if self._device.type != "cpu":
            return [rows]
        size = max(1, _CACHED // self._vocabulary)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _place(self, slot: int) -> _Place:
        place = self._places[slot]
        if place is None:
            raise LookupError(f"nobody has slot {slot}")
        return place

    def _chosen(
        self, method: Method, logits: torch.Tensor, slots: list[int], *, adjusts: bool
    ) -> torch.Tensor:
        """Tokens of rows that are chosen in the same way."""
        places = [self._place(slot) for slot in slots]
        if adjusts:
            changed = logits.to(torch.float32, copy=True)
            index = upload(slots, torch.int64, logits.device)
            self._biases.add(changed, index)
            self._history.penalise(changed, index, [place.sampling for place in places])
            impossible = _no_number(changed.amax(-1))  # looked at first: what draws may change them
            tokens = self._drawn(method, changed, places).masked_fill_(impossible, NO_CHOICE)
        else:
            tokens = self._drawn(method, logits, places)
            if (
                method == "greedy"
            ):  # its own logit is the greatest: the row need not be read once more
                greatest = logits.gather(-1, tokens[:, None])[:, 0]
                return tokens.masked_fill_(_no_number(greatest), NOT_FINITE)
        return tokens.masked_fill_(_no_number(logits.amax(-1)), NOT_FINITE)

    def _drawn(self, method: Method, logits: torch.Tensor, places: list[_Place]) -> torch.Tensor:
        if method == "greedy":
            return logits.argmax(dim=-1)
        settings = [place.sampling for place in places]
        columns = [
            [setting.temperature for setting in settings],
            [place.dice.next for place in places],
            [math.log(setting.min_p) if setting.min_p > 0 else -math.inf for setting in settings],
            [setting.top_p for setting in settings],
            [setting.top_k for setting in settings],
        ]
        temperature, dice, floor, top_p, top_k = upload(columns, torch.float64, logits.device)[
            :, :, None
        ]
        depths, weights = weigh(logits.float() / temperature.float())
        if method != "plain":
            limits = Limits(
                floor=floor.float(),
                top_k=None if method == "open" else top_k.long(),
                top_p=top_p if any(setting.top_p < 1 for setting in settings) else None,
                most_k=max(setting.top_k for setting in settings),
            )
            weights = kept(depths, weights, self._narrow[method](depths, weights, limits))
        return draw(weights, dice)


def _method(sampling: Sampling, vocabulary: int) -> Method:
    if sampling.temperature < _COLDEST:
        return "greedy"
    if 0 < sampling.top_k < vocabulary:
        return "short" if sampling.top_k <= SHORTLIST else "wide"
    return "plain" if sampling.top_p >= 1 and sampling.min_p <= 0 else "open"


def _no_number(greatest: torch.Tensor) -> torch.Tensor:
    """Which rows have NaN (greater than any number) or +inf, or -inf everywhere, by their greatest logits."""
    return (
        greatest - greatest
    ) != 0  # half the kernels of `isfinite`; they are tiny, but run in every step


def _download(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; from a GPU it is on its way there."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _told(logprob: float) -> float:
    return (
        round(logprob, 6) if logprob > LEAST_LOGPROB else LEAST_LOGPROB
    )  # also what is not a number
