"""How many prompt tokens a step reads, and whose."""

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.transformers.model.cuda_graphs import MixedSize
from worker.engines.transformers.prefill_budget import (
    PREFILL_SECONDS,
    PrefillBudget,
    divide_budget,
)


def test_a_short_prompt_is_read_beside_a_long_one() -> None:
    assert divide_budget([9000, 20], 256) == [236, 20]
    assert divide_budget([9000, 500, 20], 256) == [128, 108, 20]


def test_the_oldest_gets_what_nobody_else_needs() -> None:
    assert divide_budget([9000], 256) == [256]
    assert divide_budget([10, 9000], 256) == [10, 246]
    assert divide_budget([], 256) == []


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=32), st.integers(1, 4096))
def test_a_step_reads_all_it_may_and_the_oldest_always_moves(
    remaining: list[int], budget: int
) -> None:
    given_ = divide_budget(remaining, budget)
    assert sum(given_) == min(budget, sum(remaining))
    assert all(0 <= count <= rest for count, rest in zip(given_, remaining, strict=True))
    assert given_[0] >= min(remaining[0], (budget + 1) // 2)


def test_those_who_decode_are_held_up_for_a_bounded_time() -> None:
    budget = PrefillBudget(256)
    assert budget.tokens(3) == 256
    budget.observe(256, 1.6)  # far into a long prompt
    assert budget.tokens(3) == 16
    assert budget.tokens(0) == 256
    budget.observe(64, PREFILL_SECONDS)
    assert budget.tokens(3) == 64


SIZES = [MixedSize(tokens, rows) for tokens in (128, 512, 1024, 2048) for rows in (0, 64)]


def test_a_step_of_a_gpu_takes_the_time_that_streams_may_pause() -> None:
    budget = PrefillBudget(2048, sizes=SIZES, step_seconds={2048: 0.0512})
    assert budget.tokens(0) == 2048
    assert budget.tokens(5) == 1019  # 1,800 in 45 ms, but a graph computes 1,024 tokens in all
    for _ in range(40):
        budget.observe_step(0, 0.030)  # decoding alone takes so long
    assert budget.tokens(5) == 507
    for _ in range(40):
        budget.observe_step(0, 0.080)
    assert budget.tokens(5) == 1019  # a full batch that is never filled again is slower
    for _ in range(40):
        budget.observe_step(0, 0.030)
    for _ in range(40):
        budget.observe_step(507, 0.080)  # slower than at the start, far into long prompts
    assert budget.tokens(5) == 123
    for _ in range(40):
        budget.observe_step(123, 0.500)
    assert budget.tokens(5) == 123  # prompts always move


def test_a_step_takes_longer_where_streams_are_flushed_seldom_anyway() -> None:
    sizes = [MixedSize(tokens, 512) for tokens in (1024, 2048)]
    budget = PrefillBudget(2048, sizes=sizes, step_seconds={2048: 0.0512})
    assert budget.tokens(100) == 924
    assert budget.tokens(256) == 2048 - 256  # 51 ms each


def test_the_fastest_of_the_sizes_that_a_step_has_time_for() -> None:
    seconds = {128: 0.006, 512: 0.013, 1024: 0.021, 2048: 0.044}
    budget = PrefillBudget(2048, sizes=SIZES, step_seconds=seconds)
    assert [budget.tokens(0), budget.tokens(64), budget.tokens(3)] == [1024, 960, 1021]
    assert budget.tokens(65) == 2040  # no graph has room for them
    assert PrefillBudget(600, sizes=SIZES, step_seconds=seconds).tokens(0) == 512


def test_a_step_hardly_longer_than_decoding_alone_does_not_make_prompts_free() -> None:
    budget = PrefillBudget(2048, sizes=SIZES, step_seconds={1024: 0.021})
    before = budget._tokens_per_second
    for _ in range(40):
        budget.observe_step(0, 0.030)
    for _ in range(40):
        budget.observe_step(448, 0.0301)  # it took 4,480,000 tokens a second, so to say
    assert budget._tokens_per_second == before
    for _ in range(5):
        budget.observe_step(448, 0.080)
    assert budget.tokens(5) < 448


def test_a_size_that_was_not_measured_is_as_fast_as_the_next_one() -> None:
    """Of a context of 1,500 tokens no longer prompt is measured, but steps with decoding rows are
    longer.
    """
    sizes = [MixedSize(1536, 64), MixedSize(1024, 64), MixedSize(512, 64)]
    seconds = {512: 0.013, 1024: 0.021}
    assert PrefillBudget(1500, sizes=sizes, step_seconds=seconds).tokens(0) == 1024
    slower = {512: 0.005, 1024: 0.050}
    assert PrefillBudget(1500, sizes=sizes, step_seconds=slower).tokens(0) == 512
