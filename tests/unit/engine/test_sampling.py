"""The sampler: rows that do not notice each other, logprobs, and logits that are no numbers."""

import math
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some

from broker.wire import Sampling
from tests.unit.engine.samplers import (
    ALGORITHMS,
    assigned,
    new_sampler,
    read,
    sample,
    sample_tokens,
)
from worker.engines.transformers.sampling import sampler as sampler_module
from worker.engines.transformers.sampling.sampler import RequestRNG, Sampler
from worker.engines.transformers.sampling.sampler_output import NO_CHOICE, NOT_FINITE

_SETTINGS = [
    Sampling(temperature=0),
    Sampling(seed=1),
    Sampling(top_p=0.5, seed=1),
    Sampling(top_k=3, seed=1),
    Sampling(min_p=0.1, logprobs=2, seed=1),
    Sampling(repetition_penalty=1.2, logit_bias={3: 2.0}, seed=1),
]


@pytest.mark.parametrize("settings", _SETTINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "one NaN", "one inf"])
def test_logits_that_are_not_numbers_are_no_token(settings: Sampling, bad: float | str) -> None:
    """And their neighbours keep their tokens; on the device every token is in the vocabulary."""
    good = torch.linspace(-3, 3, 50).repeat(3, 1)
    logits = good.clone()
    if isinstance(bad, str):
        logits[1, 7] = math.nan if "NaN" in bad else math.inf
    else:
        logits[1] = bad
    choices = sample(assigned([settings] * 3, 50), logits, [0, 1, 2])
    results = read(choices)
    expected = read(sample(assigned([settings] * 3, 50), good, [0, 1, 2]))
    assert [results[0], results[2]] == [expected[0], expected[2]]
    assert results[1].token == NOT_FINITE
    assert 0 <= int(choices.tokens[1]) < 50


def test_some_logits_of_minus_infinity_are_no_harm() -> None:
    logits = torch.full((1, 50), -math.inf)
    logits[0, 7] = 1.0
    for settings in _SETTINGS:
        assert sample_tokens(logits, [settings]) == [7]


def test_what_a_rows_own_settings_leave_no_choice_of_is_its_own_fault() -> None:
    logits = torch.zeros(2, 50)
    forbidden = Sampling(logit_bias=dict.fromkeys(range(50), -math.inf))
    infinite = Sampling(logit_bias={4: math.inf})
    assert sample_tokens(logits, [forbidden, infinite]) == [NO_CHOICE, NO_CHOICE]


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


@hypothesis_settings(max_examples=40, deadline=None)
@given(some.data())
def test_a_row_gets_the_same_tokens_in_any_company_and_order(data: Any) -> None:
    algorithm = data.draw(some.sampled_from(sorted(ALGORITHMS)))
    vocabulary = data.draw(some.sampled_from([5, 259, 1031, 4099]))
    settings = data.draw(some.lists(some_sampling, min_size=1, max_size=7))
    order = data.draw(some.permutations(range(len(settings))))
    generator = torch.Generator().manual_seed(data.draw(some.integers(0, 1000)))
    steps = torch.randn(3, len(settings), vocabulary, generator=generator) * 3
    if data.draw(some.booleans()):
        steps = steps.bfloat16()
    together = new_sampler(len(settings), vocabulary, algorithm)
    for slot, row in enumerate(order):
        together.assign(slot, settings[row], [1, 2], [])
    with mock.patch.object(
        sampler_module,
        "_LOGITS_AT_ONCE",
        data.draw(some.sampled_from([1, 2 * vocabulary, 1 << 18])),
    ):
        results = [
            read(sample(together, step[list(order)], list(range(len(order))))) for step in steps
        ]
    for slot, row in enumerate(order):
        alone = new_sampler(1, vocabulary, algorithm)
        alone.assign(0, settings[row], [1, 2], [])
        for step, mixed in zip(steps, results, strict=True):
            assert read(sample(alone, step[row : row + 1], [0]))[0] == mixed[slot]


def test_rows_go_by_their_slots_not_by_their_places() -> None:
    torch.manual_seed(0)
    step = torch.randn(1, 300).repeat(3, 1)
    sampler = new_sampler(5, 300)
    for slot in range(5):
        sampler.assign(slot, Sampling(seed=slot), [0], [])
    first = [sampled.token for sampled in read(sample(sampler, step, [4, 0, 2]))]
    sampler.assign(0, Sampling(seed=0), [0], [])
    sampler.assign(4, Sampling(temperature=0), [0], [])
    again = [sampled.token for sampled in read(sample(sampler, step, [0, 3, 4]))]
    assert (again[0], again[2]) == (first[1], int(step[0].argmax()))
    with pytest.raises(LookupError, match="slot 1"):
        sample(new_sampler(3, 300), step, [1, 2, 0])


def test_a_choice_may_be_read_after_the_next_was_made() -> None:
    torch.manual_seed(0)
    steps = torch.randn(2, 4, 300)
    sampler = new_sampler(4, 300)
    for slot in range(4):
        sampler.assign(slot, Sampling(seed=slot), [0], [])
    choices = [sample(sampler, step, [0, 1, 2, 3]) for step in steps]
    results = [[sampled.token for sampled in read(choice)] for choice in reversed(choices)]
    assert results == [choice.tokens.tolist() for choice in reversed(choices)]
    assert results[0] != results[1]


def test_a_requests_rng_can_be_continued() -> None:
    rng = RequestRNG(5)
    numbers = []
    for _ in range(4):
        numbers.append(rng.uniform)
        rng.advance()
    assert RequestRNG(5, skip=3).uniform == numbers[3]


def test_a_sequence_goes_on_with_the_draws_that_are_left() -> None:
    flat = torch.zeros(1, 5000)
    sampler = new_sampler(1, 5000)
    sampler.assign(0, Sampling(seed=7), [1], [])
    whole = [read(sample(sampler, flat, [0]))[0].token for _ in range(5)]
    sampler.assign(0, Sampling(seed=7), [1], whole[:2])
    assert [read(sample(sampler, flat, [0]))[0].token for _ in range(3)] == whole[2:]


# ---- logprobs


def test_logprobs_are_those_of_the_model_whatever_the_settings() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 40) * 3
    expected = torch.log_softmax(logits, -1)
    settings = [
        Sampling(logprobs=3, temperature=0.2, top_p=0.5, seed=1),
        Sampling(top_p=0.5),
        Sampling(logprobs=0, temperature=0, logit_bias={7: 100}),
        Sampling(logprobs=1, presence_penalty=2.0, seed=2),
    ]
    sampler = new_sampler(4, 40)
    for slot, each in enumerate(settings):
        sampler.assign(slot, each, [0], [5])
    sampled = read(sample(sampler, logits.bfloat16(), [0, 1, 2, 3]))
    assert (sampled[1].logprob, sampled[1].top, sampled[2].token, sampled[2].top) == (
        None,
        (),
        7,
        (),
    )
    for row, each in enumerate(settings):
        if each.logprobs is not None:
            assert sampled[row].logprob == pytest.approx(
                float(expected[row, sampled[row].token]), abs=0.05
            )
            best = expected[row].topk(each.logprobs)
            assert [token for token, _ in sampled[row].top] == best.indices.tolist()
            assert [logprob for _, logprob in sampled[row].top] == pytest.approx(
                best.values.tolist(), abs=0.05
            )


def test_what_cannot_be_is_told_as_a_number() -> None:
    """JSON knows no infinity."""
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [math.nan] * 3])
    sampler = new_sampler(2, 3)
    for slot in range(2):
        sampler.assign(slot, Sampling(logprobs=20), [0], [])
    first, second = read(sample(sampler, logits, [0, 1]))
    assert (first.token, first.logprob, dict(first.top)) == (
        0,
        0.0,
        {0: 0.0, 1: -9999.0, 2: -9999.0},
    )
    assert second.logprob == -9999.0


# ---- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_host_never_waits_and_the_tokens_are_those_of_a_cpu() -> None:
    settings = [
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
    rows, steps = len(settings), 20
    logits = torch.randn(steps, rows, 33_000, generator=torch.Generator().manual_seed(1)) * 3
    there = logits.to("cuda")
    chosen = {}
    for place, given_steps in (("cuda", there), ("cpu", logits)):
        sampler = Sampler(rows, 33_000, torch.device(place))
        results = []
        for begun in range(
            2
        ):  # the first time round warms up: kernels are loaded, and pinned memory is sampler
            for slot, each in enumerate(settings):
                sampler.assign(slot, each, [1, 2], [3])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the mode is a prototype, it says
                torch.cuda.set_sync_debug_mode("error" if begun and place == "cuda" else "default")
            try:
                results = [sample(sampler, step, list(range(rows))) for step in given_steps]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        chosen[place] = [[sampled.token for sampled in read(choice)] for choice in results]
    pairs = [
        pair
        for step in zip(chosen["cuda"], chosen["cpu"], strict=True)
        for pair in zip(*step, strict=True)
    ]
    assert sum(one == other for one, other in pairs) >= 0.97 * len(
        pairs
    )  # their exp() differs in the last bit
