"""Truncation and the draw, against plain arithmetic."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some

from broker.wire import Sampling
from tests.unit.engine.samplers import (
    ALGORITHMS,
    sample_tokens,
)
from worker.engines.transformers.sampling import truncation
from worker.engines.transformers.sampling.truncation import (
    SHORTLIST,
    TruncationParams,
    threshold_in_top_k,
    to_weights,
)


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


LOGITS = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]


def shares(
    setting: Sampling, logits: list[float], algorithm: str, draws: int = 4000
) -> list[float]:
    """How often each token is chosen."""
    random.seed(1)
    chosen = sample_tokens(torch.tensor([logits]).repeat(draws, 1), [setting] * draws, algorithm)
    return [chosen.count(token) / draws for token in range(len(logits))]


@pytest.mark.parametrize(
    ("setting", "expected"),
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
def test_shares(setting: Sampling, expected: list[float], algorithm: str) -> None:
    assert shares(setting, LOGITS, algorithm) == pytest.approx(expected, abs=0.03)


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
    """Sorts, sums and cuts with Python's floats; ties with the last token kept are kept, too.

    None where rounding may decide either way.
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


def kept_tokens(
    algorithm: str, logits: torch.Tensor, top_k: int, top_p: float, min_p: float
) -> set[int]:
    shifted, weights = to_weights(logits[None, :].clone())
    params = TruncationParams(
        min_shifted=torch.tensor([[math.log(min_p) if min_p else -math.inf]]),
        top_k=torch.tensor([[top_k]]) if top_k else None,
        top_p=torch.tensor([[top_p]], dtype=torch.float64) if top_p < 1 else None,
        max_top_k=top_k,
    )
    find_threshold = (
        threshold_in_top_k if top_k and algorithm == "shortlist" else ALGORITHMS[algorithm]
    )
    inside = (shifted >= find_threshold(shifted, weights, params)) & (weights > 0)
    return set(inside[0].nonzero()[:, 0].tolist())


@hypothesis_settings(max_examples=300, deadline=None)
@given(logits_rows, bounds)
def test_the_kept_tokens_are_those_of_the_definition(
    eighths: list[int], settings: dict[str, Any]
) -> None:
    logits = [each / 8 for each in eighths]
    settings["top_k"] = settings["top_k"] if settings["top_k"] < len(logits) else 0
    expected = kept_by_definition(logits, **settings)
    assume(expected is not None)
    for algorithm in ALGORITHMS:
        assert kept_tokens(algorithm, torch.tensor(logits), **settings) == expected, algorithm


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_both_ways_keep_the_same_of_a_large_vocabulary(spread: float) -> None:
    """Also where the nucleus is larger than the shortlist. bfloat16 logits: many ties."""
    generator = torch.Generator().manual_seed(3)
    rows = (torch.randn(6, 5000, generator=generator) * spread).bfloat16().float()
    settings = [
        {"top_k": 0, "top_p": 0.5, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.99, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.0, "min_p": 0.0},
        {"top_k": 900, "top_p": 0.9, "min_p": 0.0},
        {"top_k": 50, "top_p": 1.0, "min_p": 0.05},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
    ]
    for row, each in zip(rows, settings, strict=True):
        expected = kept_by_definition(row.tolist(), **each)
        assert kept_tokens("bisection", row, **each) == expected
        assert kept_tokens("shortlist", row, **each) == expected


def test_a_great_top_k() -> None:
    rows = torch.arange(3000.0)[None, :] / 256
    assert kept_tokens("bisection", rows[0], top_k=2000, top_p=1.0, min_p=0.0) == set(
        range(1000, 3000)
    )
    chosen = sample_tokens(rows.repeat(500, 1) / 100, [Sampling(top_k=2000)] * 500)
    assert 1000 <= min(chosen) < 1200


def test_top_p_beyond_the_shortlist_looks_at_the_whole_vocabulary(algorithm: str) -> None:
    chosen = sample_tokens(torch.zeros(200, 4 * SHORTLIST), [Sampling(top_p=0.9)] * 200, algorithm)
    assert len({token // SHORTLIST for token in chosen}) >= 3


# ---- the draw


@hypothesis_settings(deadline=None)
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
        truncation.sample(
            torch.tensor([weights], dtype=torch.int32), torch.tensor([[die]], dtype=torch.float64)
        )
    )
    assert weights[token] > 0
    assert sum(weights[:token]) <= die * sum(weights) * (1 + 1e-15)
    assert die * sum(weights) * (1 - 1e-15) <= sum(weights[: token + 1])


def test_the_greatest_die_draws_the_last_token_that_may_be_drawn() -> None:
    weights = torch.tensor([[5, 2**30, 3, 0, 0]], dtype=torch.int32)
    assert (
        int(truncation.sample(weights, torch.tensor([[math.nextafter(1, 0)]], dtype=torch.float64)))
        == 2
    )
    assert int(truncation.sample(weights, torch.tensor([[0.0]], dtype=torch.float64))) == 0
