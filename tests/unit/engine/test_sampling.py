"""From logits to tokens: sets and shares against plain arithmetic, and rows that do not notice each other."""

import math
import random
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from broker.wire import Sampling
from worker.engines.transformers.sampling import sampler as sampling
from worker.engines.transformers.sampling.penalties import Biases, History
from worker.engines.transformers.sampling.sampler import NO_CHOICE, NOT_FINITE, Dice, Sampler
from worker.engines.transformers.sampling.truncation import (
    SHORTLIST,
    Limits,
    by_halving,
    by_shortlist,
    draw,
    weigh,
    within_top_k,
)

CPU = torch.device("cpu")
LOGITS = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
WAYS = {
    "shortlist": by_shortlist,
    "halving": by_halving,
}  # what a CPU does without top-k, and what a GPU does


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sampler(slots: int, vocabulary: int, way: str = "shortlist") -> Sampler:
    made = Sampler(slots, vocabulary, CPU)
    made._narrow["open"] = WAYS[way]
    return made


def assigned(
    asked: list[Sampling], vocabulary: int, way: str = "shortlist", **history: list[int]
) -> Sampler:
    """Row i has slot i."""
    made = sampler(len(asked), vocabulary, way)
    for slot, setting in enumerate(asked):
        made.assign(slot, setting, history.get("prompt", [0]), history.get("answer", []))
    return made


def choose(
    logits: torch.Tensor, asked: list[Sampling], way: str = "shortlist", **history: list[int]
) -> list[int]:
    """One token a row; row i has slot i."""
    made = assigned(asked, logits.shape[-1], way, **history)
    return [picked.token for picked in made.choose(logits, list(range(len(asked)))).read()]


def shares(setting: Sampling, logits: list[float], way: str, draws: int = 4000) -> list[float]:
    """How often each token is chosen."""
    random.seed(1)
    chosen = choose(torch.tensor([logits]).repeat(draws, 1), [setting] * draws, way)
    return [chosen.count(token) / draws for token in range(len(logits))]


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.01), [0, 1, 0, 0]),
        (Sampling(top_p=0), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.7), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=0.5, top_k=2), [0, 16 / 25, 0, 9 / 25]),
        (Sampling(min_p=0.7), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(min_p=0.3, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (
            Sampling(min_p=0.3, top_p=0.75),
            [0, 4 / 7, 0, 3 / 7],
        ),  # top-p of what min-p leaves: 7 of 9
        (
            Sampling(temperature=0.5, min_p=0.5),
            [0, 16 / 25, 0, 9 / 25],
        ),  # min-p after the temperature
        (Sampling(logit_bias={0: math.log(4), 1: -100}), [4 / 9, 0, 2 / 9, 3 / 9]),
        (Sampling(logit_bias={0: 100}, top_p=0.9), [1, 0, 0, 0]),
        (Sampling(temperature=0, logit_bias={2: 5.0}), [0, 0, 1, 0]),
    ],
)
def test_shares(setting: Sampling, wanted: list[float], way: str) -> None:
    assert shares(setting, LOGITS, way) == pytest.approx(wanted, abs=0.03)


# ---- which tokens are kept

logits_rows = some.lists(
    some.integers(-64, 64), min_size=2, max_size=40
)  # in eighths: many are equally likely
bounds = some.fixed_dictionaries(
    {
        "top_k": some.integers(0, 12),
        "top_p": some.floats(0, 1),
        "min_p": some.sampled_from([0.0, 0.01, 0.3, 1.0]),
    }
)


def kept_by_definition(
    logits: list[float], top_k: int, top_p: float, min_p: float
) -> set[int] | None:
    """Sorts, adds up and cuts off, with Python's floats; tokens as likely as the last one kept are kept. None where
    rounding may decide either way.
    """
    best = max(logits)
    odds = {token: math.exp(logit - best) for token, logit in enumerate(logits)}
    odds = {token: odd for token, odd in odds.items() if odd >= min_p * (1 - 1e-9)}
    ranked = sorted(odds.values(), reverse=True)
    if 0 < top_k < len(ranked):
        odds = {token: odd for token, odd in odds.items() if odd >= ranked[top_k - 1]}
    if top_p < 1:
        need, heap = top_p * sum(odds.values()), 0.0
        for odd in sorted(odds.values(), reverse=True):
            heap += odd
            if need > 0 and abs(heap - need) < 1e-6 * need:
                return None
            if heap >= need:
                return {token for token, other in odds.items() if other >= odd}
    return set(odds)


def kept_tokens(way: str, logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    depths, weights = weigh(logits[None, :].clone())
    limits = Limits(
        floor=torch.tensor([[math.log(min_p) if min_p else -math.inf]]),
        top_k=torch.tensor([[top_k]]) if top_k else None,
        top_p=torch.tensor([[top_p]], dtype=torch.float64) if top_p < 1 else None,
        most_k=top_k,
    )
    narrow = within_top_k if top_k and way == "shortlist" else WAYS[way]
    inside = (depths >= narrow(depths, weights, limits)) & (weights > 0)
    return set(inside[0].nonzero()[:, 0].tolist())


@settings(max_examples=300, deadline=None)
@given(logits_rows, bounds)
def test_the_kept_tokens_are_those_of_the_definition(
    eighths: list[int], asked: dict[str, Any]
) -> None:
    logits = [each / 8 for each in eighths]
    asked["top_k"] = asked["top_k"] if asked["top_k"] < len(logits) else 0
    wanted = kept_by_definition(logits, **asked)
    assume(wanted is not None)
    for way in WAYS:
        assert kept_tokens(way, torch.tensor(logits), **asked) == wanted, way


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_both_ways_keep_the_same_of_a_large_vocabulary(spread: float) -> None:
    """Also where the nucleus is larger than the shortlist. bfloat16 logits: many ties."""
    generator = torch.Generator().manual_seed(3)
    rows = (torch.randn(6, 5000, generator=generator) * spread).bfloat16().float()
    asked = [
        {"top_k": 0, "top_p": 0.5, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.99, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.0, "min_p": 0.0},
        {"top_k": 900, "top_p": 0.9, "min_p": 0.0},
        {"top_k": 50, "top_p": 1.0, "min_p": 0.05},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
    ]
    for row, each in zip(rows, asked, strict=True):
        wanted = kept_by_definition(row.tolist(), **each)
        assert kept_tokens("halving", row, **each) == wanted
        assert kept_tokens("shortlist", row, **each) == wanted


def test_a_great_top_k() -> None:
    rows = torch.arange(3000.0)[None, :] / 256
    assert kept_tokens("halving", rows[0], top_k=2000, top_p=1.0, min_p=0.0) == set(
        range(1000, 3000)
    )
    chosen = choose(rows.repeat(500, 1) / 100, [Sampling(top_k=2000)] * 500)
    assert 1000 <= min(chosen) < 1200


# ---- what was said


def test_penalties_by_hand() -> None:
    """Token 0 is in the prompt, 1 was said twice, 2 both, 3 neither; the logits have both signs."""
    logits = torch.tensor([[2.0, 2.0, -1.0, 1.0]])
    told = []
    for asked in (
        Sampling(repetition_penalty=2.0),
        Sampling(frequency_penalty=0.5),
        Sampling(presence_penalty=0.5),
        Sampling(
            repetition_penalty=2.0,
            frequency_penalty=0.5,
            presence_penalty=0.25,
            logit_bias={3: 1.0, 0: -4.0},
        ),
    ):
        history, biases, slots = History(3, 4, CPU), Biases(3, CPU), torch.tensor([1])
        history.begin(1, [0, 2, 0], [1, 2])
        history.add(slots, torch.tensor([1]))
        biases.begin(1, asked.logit_bias)
        row = logits.clone()
        biases.add(row, slots)
        history.penalise(row, slots, [asked])
        told.append(row[0].tolist())
    assert told == [
        [1.0, 1.0, -2.0, 1.0],
        [2.0, 1.0, -1.5, 1.0],
        [2.0, 1.5, -1.5, 1.0],
        [-4.0, -0.25, -2.75, 2.0],  # the bias first, so the penalty sees -2
    ]


@settings(max_examples=30, deadline=None)
@given(
    some.lists(some.integers(0, 5), min_size=1, max_size=5),
    some.lists(some.integers(0, 5), max_size=5),
    some.fixed_dictionaries(
        {
            "repetition_penalty": some.sampled_from([1.0, 1.5]),
            "frequency_penalty": some.sampled_from([-0.5, 0.0, 0.75]),
            "presence_penalty": some.sampled_from([0.0, 1.25]),
        }
    ),
)
def test_what_is_said_counts_at_once(
    prompt: list[int], answer: list[int], penalties: dict[str, float]
) -> None:
    """Greedy, ten tokens, none of them read before all are chosen."""
    logits = [0.0, 0.4, 0.8, -0.3, 1.1, 0.9]
    made = sampler(2, 6)
    made.assign(1, Sampling(temperature=0, **penalties), prompt, answer)
    choices = [made.choose(torch.tensor([logits]), [1]) for _ in range(10)]
    said = list(answer)
    for choice in choices:
        adjusted = []
        for token, logit in enumerate(logits):
            factor = penalties["repetition_penalty"] if token in prompt or token in said else 1.0
            once, often = (token in said) * penalties["presence_penalty"], said.count(token)
            repeated = logit / factor if logit > 0 else logit * factor
            adjusted.append(repeated - often * penalties["frequency_penalty"] - once)
        [picked] = choice.read()
        assert adjusted[picked.token] == pytest.approx(max(adjusted), abs=1e-5)
        said.append(picked.token)


def test_a_slots_next_sequence_begins_without_history() -> None:
    logits = torch.tensor([[1.0, 0.9]])
    made = sampler(1, 2)
    for _ in range(2):
        made.assign(0, Sampling(temperature=0, presence_penalty=1.0, logit_bias={0: 0.05}), [0], [])
        assert [made.choose(logits, [0]).read()[0].token for _ in range(3)] == [0, 1, 0]
    made.assign(0, Sampling(temperature=0), [0], [])
    assert [made.choose(logits, [0]).read()[0].token for _ in range(3)] == [0, 0, 0]
    made.assign(0, Sampling(temperature=0, frequency_penalty=0.06), [0], [])
    assert made.choose(logits, [0]).read()[0].token == 0


def test_without_penalties_and_biases_nothing_is_kept_for_them() -> None:
    made = sampler(4, 1000)
    made.assign(0, Sampling(), [1], [2])
    assert (made._history._counts, made._biases._ids) == (None, None)


def test_the_models_logits_stay_as_they_are() -> None:
    logits = torch.randn(2, 50)
    before = logits.clone()
    choose(
        logits,
        [Sampling(presence_penalty=1.0, logit_bias={3: 9.0}), Sampling(top_p=0.5)],
        answer=[4],
    )
    choose(logits[:1], [Sampling(presence_penalty=1.0, logit_bias={3: 9.0})], answer=[4])
    assert torch.equal(logits, before)


# ---- the draw


@settings(deadline=None)
@given(
    some.lists(some.integers(0, 2**30), min_size=1, max_size=30),
    some.sampled_from([1, 100, 512, 700, 2048]),
    some.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_a_token_that_has_weight(pattern: list[int], size: int, die: float) -> None:
    """In vocabularies of less than a block, of whole blocks, and of a piece more."""
    weights = [weight for number in range(size) for weight in (*[0] * (number % 3), *pattern)][
        :size
    ]
    assume(sum(weights))
    token = int(
        draw(torch.tensor([weights], dtype=torch.int32), torch.tensor([[die]], dtype=torch.float64))
    )
    assert weights[token] > 0
    assert sum(weights[:token]) <= die * sum(weights) * (1 + 1e-15)
    assert die * sum(weights) * (1 - 1e-15) <= sum(weights[: token + 1])


def test_the_greatest_die_draws_the_last_token_that_may_be_drawn() -> None:
    weights = torch.tensor([[5, 2**30, 3, 0, 0]], dtype=torch.int32)
    assert int(draw(weights, torch.tensor([[math.nextafter(1, 0)]], dtype=torch.float64))) == 2
    assert int(draw(weights, torch.tensor([[0.0]], dtype=torch.float64))) == 0


_WAYS = [
    Sampling(temperature=0), Sampling(seed=1), Sampling(top_p=0.5, seed=1), Sampling(top_k=3, seed=1),
    Sampling(min_p=0.1, logprobs=2, seed=1), Sampling(repetition_penalty=1.2, logit_bias={3: 2.0}, seed=1),
]  # fmt: skip


@pytest.mark.parametrize("asked", _WAYS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "one NaN", "one inf"])
def test_logits_that_are_not_numbers_are_no_token(asked: Sampling, bad: float | str) -> None:
    """And the rows beside them get what they get alone; on the device there is always a token of the vocabulary."""
    good = torch.linspace(-3, 3, 50).repeat(3, 1)
    logits = good.clone()
    if isinstance(bad, str):
        logits[1, 7] = math.nan if "NaN" in bad else math.inf
    else:
        logits[1] = bad
    choices = assigned([asked] * 3, 50).choose(logits, [0, 1, 2])
    told = choices.read()
    expected = assigned([asked] * 3, 50).choose(good, [0, 1, 2]).read()
    assert [told[0], told[2]] == [expected[0], expected[2]]
    assert told[1].token == NOT_FINITE
    assert 0 <= int(choices.tokens[1]) < 50


def test_some_logits_of_minus_infinity_are_no_harm() -> None:
    logits = torch.full((1, 50), -math.inf)
    logits[0, 7] = 1.0
    for asked in _WAYS:
        assert choose(logits, [asked]) == [7]


def test_what_a_rows_own_settings_leave_no_choice_of_is_its_own_fault() -> None:
    logits = torch.zeros(2, 50)
    forbidden = Sampling(logit_bias=dict.fromkeys(range(50), -math.inf))
    infinite = Sampling(logit_bias={4: math.inf})
    assert choose(logits, [forbidden, infinite]) == [NO_CHOICE, NO_CHOICE]


# ---- rows and their company

some_sampling = some.builds(
    Sampling,
    temperature=some.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=some.sampled_from([0.1, 0.9, 1.0]),
    top_k=some.sampled_from([0, 1, 40, 1500]),
    min_p=some.sampled_from([0.0, 0.0, 0.1]),
    repetition_penalty=some.sampled_from([1.0, 1.0, 1.3]),
    presence_penalty=some.sampled_from([0.0, 0.0, 0.7]),
    logit_bias=some.sampled_from([{}, {}, {3: 2.5, 1: -100.0}]),
    logprobs=some.sampled_from([None, None, 0, 4]),
    seed=some.integers(0, 2**63),
)


@settings(max_examples=40, deadline=None)
@given(some.data())
def test_a_row_gets_the_same_tokens_in_any_company_and_order(data: Any) -> None:
    way = data.draw(some.sampled_from(sorted(WAYS)))
    vocabulary = data.draw(some.sampled_from([5, 259, 1031, 4099]))
    asked = data.draw(some.lists(some_sampling, min_size=1, max_size=7))
    order = data.draw(some.permutations(range(len(asked))))
    generator = torch.Generator().manual_seed(data.draw(some.integers(0, 1000)))
    steps = torch.randn(3, len(asked), vocabulary, generator=generator) * 3
    if data.draw(some.booleans()):
        steps = steps.bfloat16()
    together = sampler(len(asked), vocabulary, way)
    for slot, row in enumerate(order):
        together.assign(slot, asked[row], [1, 2], [])
    with mock.patch.object(
        sampling, "_CACHED", data.draw(some.sampled_from([1, 2 * vocabulary, 1 << 18]))
    ):
        told = [
            together.choose(step[list(order)], list(range(len(order)))).read() for step in steps
        ]
    for slot, row in enumerate(order):
        alone = sampler(1, vocabulary, way)
        alone.assign(0, asked[row], [1, 2], [])
        for step, mixed in zip(steps, told, strict=True):
            assert alone.choose(step[row : row + 1], [0]).read()[0] == mixed[slot]


def test_rows_go_by_their_slots_not_by_their_places() -> None:
    torch.manual_seed(0)
    step = torch.randn(1, 300).repeat(3, 1)
    made = sampler(5, 300)
    for slot in range(5):
        made.assign(slot, Sampling(seed=slot), [0], [])
    first = [picked.token for picked in made.choose(step, [4, 0, 2]).read()]
    made.assign(0, Sampling(seed=0), [0], [])
    made.assign(4, Sampling(temperature=0), [0], [])
    again = [picked.token for picked in made.choose(step, [0, 3, 4]).read()]
    assert (again[0], again[2]) == (first[1], int(step[0].argmax()))
    with pytest.raises(LookupError, match="slot 1"):
        sampler(3, 300).choose(step, [1, 2, 0])


def test_a_choice_may_be_read_after_the_next_was_made() -> None:
    torch.manual_seed(0)
    steps = torch.randn(2, 4, 300)
    made = sampler(4, 300)
    for slot in range(4):
        made.assign(slot, Sampling(seed=slot), [0], [])
    choices = [made.choose(step, [0, 1, 2, 3]) for step in steps]
    told = [[picked.token for picked in choice.read()] for choice in reversed(choices)]
    assert told == [choice.tokens.tolist() for choice in reversed(choices)]
    assert told[0] != told[1]


def test_top_p_beyond_the_shortlist_looks_at_the_whole_vocabulary(way: str) -> None:
    chosen = choose(torch.zeros(200, 4 * SHORTLIST), [Sampling(top_p=0.9)] * 200, way)
    assert len({token // SHORTLIST for token in chosen}) >= 3


def test_dice_can_be_continued() -> None:
    dice = Dice(5)
    draws = [dice.draw() for _ in range(4)]
    assert Dice(5, skip=3).draw() == draws[3]


def test_a_sequence_goes_on_with_the_draws_that_are_left() -> None:
    flat = torch.zeros(1, 5000)
    made = sampler(1, 5000)
    made.assign(0, Sampling(seed=7), [1], [])
    whole = [made.choose(flat, [0]).read()[0].token for _ in range(5)]
    made.assign(0, Sampling(seed=7), [1], whole[:2])
    assert [made.choose(flat, [0]).read()[0].token for _ in range(3)] == whole[2:]


# ---- logprobs


def test_logprobs_are_those_of_the_model_whatever_the_settings() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 40) * 3
    wanted = torch.log_softmax(logits, -1)
    asked = [
        Sampling(logprobs=3, temperature=0.2, top_p=0.5, seed=1),
        Sampling(top_p=0.5),
        Sampling(logprobs=0, temperature=0, logit_bias={7: 100}),
        Sampling(logprobs=1, presence_penalty=2.0, seed=2),
    ]
    made = sampler(4, 40)
    for slot, each in enumerate(asked):
        made.assign(slot, each, [0], [5])
    picked = made.choose(logits.bfloat16(), [0, 1, 2, 3]).read()
    assert (picked[1].logprob, picked[1].top, picked[2].token, picked[2].top) == (None, (), 7, ())
    for row, each in enumerate(asked):
        if each.logprobs is not None:
            assert picked[row].logprob == pytest.approx(
                float(wanted[row, picked[row].token]), abs=0.05
            )
            best = wanted[row].topk(each.logprobs)
            assert [token for token, _ in picked[row].top] == best.indices.tolist()
            assert [logprob for _, logprob in picked[row].top] == pytest.approx(
                best.values.tolist(), abs=0.05
            )


def test_what_cannot_be_is_told_as_a_number() -> None:
    """JSON knows no infinity."""
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [math.nan] * 3])
    made = sampler(2, 3)
    for slot in range(2):
        made.assign(slot, Sampling(logprobs=20), [0], [])
    first, second = made.choose(logits, [0, 1]).read()
    assert (first.token, first.logprob, dict(first.top)) == (
        0,
        0.0,
        {0: 0.0, 1: -9999.0, 2: -9999.0},
    )
    assert second.logprob == -9999.0


# ---- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_host_never_waits_and_the_tokens_are_those_of_a_cpu() -> None:
    asked = [
        Sampling(temperature=0, logprobs=3),
        Sampling(seed=1),
        Sampling(seed=2, top_p=0.9, temperature=0.7),
        Sampling(seed=3, top_k=50, top_p=0.9, logprobs=0),
        Sampling(seed=4, top_k=2000),
        Sampling(
            seed=5, min_p=0.05, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5
        ),
        Sampling(temperature=0, logit_bias={7: 100.0}),
    ]
    rows, steps = len(asked), 20
    logits = torch.randn(steps, rows, 33_000, generator=torch.Generator().manual_seed(1)) * 3
    there = logits.to("cuda")
    chosen = {}
    for place, given_steps in (("cuda", there), ("cpu", logits)):
        made = Sampler(rows, 33_000, torch.device(place))
        told = []
        for begun in range(
            2
        ):  # the first time round warms up: kernels are loaded, and pinned memory is made
            for slot, each in enumerate(asked):
                made.assign(slot, each, [1, 2], [3])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the mode is a prototype, it says
                torch.cuda.set_sync_debug_mode("error" if begun and place == "cuda" else "default")
            try:
                told = [made.choose(step, list(range(rows))) for step in given_steps]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        chosen[place] = [[picked.token for picked in choice.read()] for choice in told]
    pairs = [
        pair
        for step in zip(chosen["cuda"], chosen["cpu"], strict=True)
        for pair in zip(*step, strict=True)
    ]
    assert sum(one == other for one, other in pairs) >= 0.97 * len(
        pairs
    )  # their exp() differs in the last bit
