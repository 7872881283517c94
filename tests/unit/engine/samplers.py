"""Samplers for tests, with either algorithm for thresholds; row i has slot i."""

import torch

from broker.wire import Sampling
from worker.engines.transformers.sampling.sampler import Sampler
from worker.engines.transformers.sampling.sampler_output import SampledToken, SamplerOutput
from worker.engines.transformers.sampling.truncation import (
    threshold_by_bisection,
    threshold_in_shortlist,
)

CPU = torch.device("cpu")
# without top-k: what a CPU does, and what a GPU does
ALGORITHMS = {"shortlist": threshold_in_shortlist, "bisection": threshold_by_bisection}


def new_sampler(slots: int, vocabulary: int, algorithm: str = "shortlist") -> Sampler:
    sampler = Sampler(slots, vocabulary, CPU)
    sampler._thresholds["nucleus"] = ALGORITHMS[algorithm]
    return sampler


def assigned(
    settings: list[Sampling], vocabulary: int, algorithm: str = "shortlist", **history: list[int]
) -> Sampler:
    """Row i has slot i."""
    sampler = new_sampler(len(settings), vocabulary, algorithm)
    for slot, sampling in enumerate(settings):
        sampler.assign(slot, sampling, history.get("prompt", [0]), history.get("answer", []))
    return sampler


def sample(sampler: Sampler, logits: torch.Tensor, slots: list[int]) -> SamplerOutput:
    """Samples and accepts a token for each of `slots`, as a scheduler does."""
    output = sampler.sample(logits, slots)
    for slot in slots:
        sampler.advance(slot)
    rows = sampler.rows_with_processors(slots)
    if rows:
        sampler.count(output, slots, rows)
    return output


def read(output: SamplerOutput) -> list[SampledToken]:
    """The token of every row; waits for the device."""
    output.wait()
    return [output.sampled(row) for row in range(len(output.tokens))]


def sample_tokens(
    logits: torch.Tensor,
    settings: list[Sampling],
    algorithm: str = "shortlist",
    **history: list[int],
) -> list[int]:
    """One token a row; row i has slot i."""
    sampler = assigned(settings, logits.shape[-1], algorithm, **history)
    output = sample(sampler, logits, list(range(len(settings))))
    return [sampled.token for sampled in read(output)]
