"""Biases and penalties, by hand and against plain arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some

from broker.wire import Sampling
from tests.unit.engine.samplers import CPU, new_sampler, read, sample, sample_tokens
from worker.engines.transformers.sampling.penalties import LogitBias, TokenCounts


def test_penalties_by_hand() -> None:
    """Token 0 is in the prompt, 1 was said twice, 2 both, 3 neither; the logits have both signs."""
    logits = torch.tensor([[2.0, 2.0, -1.0, 1.0]])
    results = []
    for settings in (
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
        counts, biases, slots = TokenCounts(3, 4, CPU), LogitBias(3, CPU), torch.tensor([1])
        counts.assign(1, [0, 2, 0], [1, 2])
        counts.add(slots, torch.tensor([1]))
        biases.assign(1, settings.logit_bias)
        row = logits.clone()
        biases.apply(row, slots)
        counts.penalise(row, slots, [settings])
        results.append(row[0].tolist())
    assert results == [
        [1.0, 1.0, -2.0, 1.0],
        [2.0, 1.0, -1.5, 1.0],
        [2.0, 1.5, -1.5, 1.0],
        [-4.0, -0.25, -2.75, 2.0],  # the bias first, so the penalty sees -2
    ]


@hypothesis_settings(max_examples=30, deadline=None)
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
    sampler = new_sampler(2, 6)
    sampler.assign(1, Sampling(temperature=0, **penalties), prompt, answer)
    choices = [sample(sampler, torch.tensor([logits]), [1]) for _ in range(10)]
    said = list(answer)
    for choice in choices:
        adjusted = []
        for token, logit in enumerate(logits):
            factor = penalties["repetition_penalty"] if token in prompt or token in said else 1.0
            once, often = (token in said) * penalties["presence_penalty"], said.count(token)
            repeated = logit / factor if logit > 0 else logit * factor
            adjusted.append(repeated - often * penalties["frequency_penalty"] - once)
        [sampled] = read(choice)
        assert adjusted[sampled.token] == pytest.approx(max(adjusted), abs=1e-5)
        said.append(sampled.token)


def test_a_slots_next_sequence_begins_without_history() -> None:
    logits = torch.tensor([[1.0, 0.9]])
    sampler = new_sampler(1, 2)
    for _ in range(2):
        sampler.assign(
            0, Sampling(temperature=0, presence_penalty=1.0, logit_bias={0: 0.05}), [0], []
        )
        assert [read(sample(sampler, logits, [0]))[0].token for _ in range(3)] == [0, 1, 0]
    sampler.assign(0, Sampling(temperature=0), [0], [])
    assert [read(sample(sampler, logits, [0]))[0].token for _ in range(3)] == [0, 0, 0]
    sampler.assign(0, Sampling(temperature=0, frequency_penalty=0.06), [0], [])
    assert read(sample(sampler, logits, [0]))[0].token == 0


def test_without_penalties_and_biases_nothing_is_kept_for_them() -> None:
    sampler = new_sampler(4, 1000)
    sampler.assign(0, Sampling(), [1], [2])
    assert (sampler._counts._counts, sampler._biases._ids) == (None, None)


def test_the_models_logits_stay_as_they_are() -> None:
    logits = torch.randn(2, 50)
    before = logits.clone()
    sample_tokens(
        logits,
        [Sampling(presence_penalty=1.0, logit_bias={3: 9.0}), Sampling(top_p=0.5)],
        answer=[4],
    )
    sample_tokens(logits[:1], [Sampling(presence_penalty=1.0, logit_bias={3: 9.0})], answer=[4])
    assert torch.equal(logits, before)
