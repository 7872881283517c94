"""The next token of every row, each by its own settings and its own dice, without waiting for the device.

The order in which settings count is the one that servers of OpenAI's interface have in common (vLLM's): biases,
repetition penalty, frequency and presence penalty, temperature, min-p, top-k, top-p.
A row's token depends on its logits, its settings and its dice alone, whatever else is computed with it: see `narrow`.
"""

import math
import random
from typing import Literal

import msgspec
import torch

from broker.wire import Sampling
from worker.engines.adjusting import Biases, History, penalised, upload
from worker.engines.narrow import SHORTLIST, Limits, draw, thresholds, thresholds_by_shortlist, weigh

_COLDEST = 1e-5  # temperatures below it are 0: logits divided by them would be infinite
Method = Literal["greedy", "plain", "narrowed", "wide"]  # wide: narrowed, with a great top_k


class Picked(msgspec.Struct, frozen=True):
    """A chosen token. `logprob`, and `top` (ids and logprobs of the likeliest, best first), only if asked for."""

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

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()


class Choice:
    """One step's tokens: on the device at once, on the host when they have got there."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens  # [rows] int64, on the device
        self._host, self._arrived = _download(tokens)

    def read(self) -> list[Picked]:
        """A Picked for each row; waits for the device. To be called once."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [Picked(token) for token in self._host.tolist()]


class _Place(msgspec.Struct):
    """Who has a slot."""

    sampling: Sampling
    method: Method
    adjusts: bool  # its logits are changed first
    dice: Dice


class Sampler:
    """Chooses tokens for up to `slots` sequences of a model that knows `vocabulary` tokens.

    On a GPU nothing here waits for the device: settings and random numbers go up through pinned memory, and what
    comes back is waited for in `Choice.read`. One call may follow another before the first was read.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._places: list[_Place | None] = [None] * slots
        self._history = History(slots, vocabulary, device)
        self._biases = Biases(slots, device)
        self._narrow = thresholds_by_shortlist if device.type == "cpu" else thresholds

    def assign(self, slot: int, sampling: Sampling, prompt: list[int], answer: list[int]) -> None:
        """A sequence takes `slot`, whoever had it before. `answer`: its tokens so far, when it is continued."""
        counts = penalised(sampling)
        self._biases.begin(slot, sampling.logit_bias)
        if counts:
            self._history.begin(slot, prompt, answer)
        method = _method(sampling, self._vocabulary)
        dice = Dice(sampling.seed, skip=len(answer))
        self._places[slot] = _Place(sampling, method, counts or bool(sampling.logit_bias), dice)

    def choose(self, logits: torch.Tensor, slots: list[int]) -> Choice:
        """The next tokens: row i of `logits` [rows, vocabulary] belongs to slots[i], no slot comes twice.

        Rows that sample draw once from their dice. `logits` stay as they are.
        """
        groups: dict[tuple[Method, bool], list[int]] = {}
        for row, place in enumerate(map(self._place, slots)):
            groups.setdefault((place.method, place.adjusts), []).append(row)
        if len(groups) == 1:
            [(method, adjusts)] = groups
            return Choice(self._chosen(method, logits, slots, adjusts=adjusts))
        tokens = torch.empty(len(slots), dtype=torch.int64, device=logits.device)
        for (method, adjusts), rows in groups.items():
            index = upload(rows, torch.int64, logits.device)
            part = logits.index_select(0, index)
            tokens.index_copy_(0, index, self._chosen(method, part, [slots[row] for row in rows], adjusts=adjusts))
        return Choice(tokens)

    def _place(self, slot: int) -> _Place:
        place = self._places[slot]
        if place is None:
            raise LookupError(f"nobody has slot {slot}")
        return place

    def _chosen(self, method: Method, logits: torch.Tensor, slots: list[int], *, adjusts: bool) -> torch.Tensor:
        """Tokens of rows that are chosen in the same way."""
        places = [self._place(slot) for slot in slots]
        if not adjusts:
            return self._drawn(method, logits, places)
        logits = logits.to(torch.float32, copy=True)
        index = upload(slots, torch.int64, logits.device)
        self._biases.add(logits, index)
        self._history.penalise(logits, index, [place.sampling for place in places])
        tokens = self._drawn(method, logits, places)
        self._history.add(index, tokens)
        return tokens

    def _drawn(self, method: Method, logits: torch.Tensor, places: list[_Place]) -> torch.Tensor:
        if method == "greedy":
            return logits.argmax(dim=-1)
        settings = [place.sampling for place in places]
        columns = [[setting.temperature for setting in settings], [place.dice.draw() for place in places]]
        if method != "plain":
            columns += self._bounds(settings)
        table = upload(columns, torch.float64, logits.device)
        scaled = logits.float() / table[0][:, None].float()
        depths, weights = weigh(scaled)
        if method != "plain":
            top_k, top_p, floor = (column[:, None] for column in table[2:])
            limits = Limits(floor.float(), top_k.long(), top_p, int(max(columns[2])), min(columns[3]) < 1)
            narrow = thresholds if method == "wide" else self._narrow
            weights = torch.where(depths >= narrow(depths, weights, limits), weights, 0)
        return draw(weights, table[1])

    def _bounds(self, settings: list[Sampling]) -> list[list[float]]:
        return [
            [float(_top_k(setting, self._vocabulary)) for setting in settings],
            [setting.top_p for setting in settings],
            [math.log(setting.min_p) if setting.min_p > 0 else -math.inf for setting in settings],
        ]


def _method(sampling: Sampling, vocabulary: int) -> Method:
    if sampling.temperature < _COLDEST:
        return "greedy"
    top_k = _top_k(sampling, vocabulary)
    if top_k > SHORTLIST:
        return "wide"
    return "plain" if not top_k and sampling.top_p >= 1 and sampling.min_p <= 0 else "narrowed"


def _top_k(sampling: Sampling, vocabulary: int) -> int:
    return sampling.top_k if 0 < sampling.top_k < vocabulary else 0


def _download(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """The tensor on the host, and what tells when it is there."""
    if tensor.device.type != "cuda":
        return tensor.cpu(), None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))
    return host, arrived
