"""The simulator against theory, against itself, and against what must be true of any queue."""

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policy.simulation import lengths, theory
from bench.policy.simulation.laws import ARRIVALS, SERVICES, Workload, draw, normalized
from bench.policy.simulation.outcome import Figures, Outcome, Spread, confidence
from bench.policy.simulation.plan import Delays, Plan
from bench.policy.simulation.simulate import CENTRAL, DISCIPLINES, simulate

SEVEN = Plan.of(7, fanout=2)


def jobs(
    plan: Plan,
    load: float,
    count: int,
    *,
    service: str = "exponential",
    arrivals: str = "poisson",
    seed: int = 1,
) -> Workload:
    gaps = draw(ARRIVALS[arrivals], count, random.Random(seed))
    return Workload.at_rate(
        load * plan.capacity, gaps, draw(SERVICES[service], count, random.Random(~seed))
    )


# ---- against theory; the seeds are fixed, so each of these gives the same figures every time


@pytest.mark.parametrize(
    ("slots", "load"), [(1, 0.5), (1, 0.8), (2, 0.7), (7, 0.5), (7, 0.8), (7, 0.9)]
)
def test_the_central_queue_has_the_mean_of_erlang_c(slots: int, load: float) -> None:
    plan = Plan.of(slots)
    mean, half_width = confidence(
        simulate(CENTRAL, plan, jobs(plan, load, 100_000)).times_in_system()
    )
    assert half_width < 0.2 * mean
    assert mean == pytest.approx(theory.central_queue_mean(slots, load), abs=half_width)


@pytest.mark.parametrize(
    ("service", "cv2"), [("deterministic", 0), ("exponential", 1), ("hyperexponential", 4)]
)
def test_a_node_alone_has_the_mean_of_pollaczek_and_khinchine(service: str, cv2: float) -> None:
    plan = Plan.of(1)
    outcome = simulate("hold-high", plan, jobs(plan, 0.5, 12_000, service=service))
    mean, half_width = confidence(outcome.times_in_system())
    assert half_width < 0.2 * mean
    assert mean == pytest.approx(theory.single_queue_mean(0.5, cv2), abs=half_width)


def test_nobody_waits_where_jobs_come_as_regularly_as_they_are_served() -> None:
    workload = jobs(Plan.of(1), 0.999, 500, service="deterministic", arrivals="deterministic")
    outcome = simulate("paper", Plan.of(1), workload)
    assert outcome.times_in_system() == pytest.approx([1.0] * 450)


def test_known_values_of_the_formulas() -> None:
    assert theory.erlang_c(1, 0.7) == pytest.approx(0.7)
    assert theory.erlang_c(2, 0.5) == pytest.approx(1 / 3)
    assert theory.central_queue_mean(1, 0.5) == pytest.approx(2)
    assert theory.single_queue_mean(0.5, 1) == pytest.approx(2)
    assert theory.central_queue_mean(3, 1.0) == theory.single_queue_mean(1.0, 1) == float("inf")


def test_paper_is_as_theory_says() -> None:
    outcome = simulate("paper", SEVEN, jobs(SEVEN, 0.7, 12_000, seed=2))
    mean, half_width = confidence(outcome.times_in_system())
    assert half_width < 0.2 * mean
    assert mean == pytest.approx(theory.paper_mean(0.7), abs=half_width)
    assert outcome.utilisation("leaf") == pytest.approx(theory.paper_leaf_load(0.7), rel=0.05)


def test_under_paper_the_leaves_saturate_while_inner_nodes_still_sleep() -> None:
    assert theory.paper_saturation() == pytest.approx(0.915, abs=0.001)
    assert theory.paper_leaf_load(theory.paper_saturation()) == pytest.approx(1)
    assert theory.paper_mean(0.92) == float("inf")
    outcome = simulate("paper", SEVEN, jobs(SEVEN, 0.97, 3000))
    assert outcome.utilisation("leaf") > 0.98
    assert outcome.utilisation("inner") < 0.9


def test_the_figures_of_the_design() -> None:
    """Load 0.9: one central queue, and `paper`."""
    assert theory.central_queue_mean(7, 0.9) == pytest.approx(2.03, abs=0.005)
    assert theory.paper_mean(0.9) == pytest.approx(19.2, abs=0.05)


# ---- what must be true of any queue


def plan_of(above: list[int], slots: int) -> Plan:
    """n1, n2, ... each below the root or an earlier node."""
    parents = {f"n{node}": number % node for node, number in enumerate(above, 1)}
    return Plan(
        {name: f"n{parent}" if parent else "root" for name, parent in parents.items()}, slots
    )


plans = st.builds(
    plan_of, st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(1, 3)
)
late = st.builds(Delays, st.sampled_from([0.0, 0.01, 0.3]), st.sampled_from([0.0, 0.02, 0.5]))
loads = st.floats(0.2, 1.2)
laws = st.sampled_from(sorted(SERVICES))


def at_once(outcome: Outcome) -> int:
    """The most jobs that ran at one moment."""
    steps = [(start, 1) for start in outcome.starts] + [(end, -1) for end in outcome.ends]
    return max(accumulate(step for _, step in sorted(steps)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(DISCIPLINES)), plans, late, loads, laws, st.integers(0, 99))
def test_every_job_runs_once_in_a_slot_and_waiting_is_accounted_for(
    discipline: str, plan: Plan, delays: Delays, load: float, law: str, seed: int
) -> None:
    workload = jobs(plan, load, 120, service=law, seed=seed)
    outcome = simulate(discipline, plan, workload, delays=delays)
    assert len(outcome.starts) == len(outcome.ran_on) == len(workload.arrivals)
    assert all(
        start >= arrival for start, arrival in zip(outcome.starts, workload.arrivals, strict=True)
    )
    assert at_once(outcome) <= plan.capacity
    assert set(outcome.ran_on) <= set(outcome.slots)
    assert "root" not in outcome.ran_on
    waiting = sum(
        start - arrival for start, arrival in zip(outcome.starts, workload.arrivals, strict=True)
    )
    held = sum(
        outcome.waited.values()
    )  # Little: the backlog over time is the jobs' waiting, but for the way
    assert held <= waiting + 1e-6
    if delays.hop == 0:
        assert held == pytest.approx(waiting, abs=1e-6)


def test_a_hop_is_paid_on_every_edge() -> None:
    plan = Plan({"n1": "root", "n2": "n1", "n3": "n2"})
    workload = Workload([0.0, 0.5, 1.0], [100.0, 100.0, 100.0])
    assert simulate("paper", plan, workload, delays=Delays(hop=0.1)).starts == pytest.approx(
        [0.1, 0.7, 1.3]
    )


@settings(max_examples=40, deadline=None)
@given(plans, loads, laws, st.integers(0, 99))
def test_hold_high_with_news_at_once_is_the_central_queue(
    plan: Plan, load: float, law: str, seed: int
) -> None:
    workload = jobs(plan, load, 150, service=law, seed=seed)
    if law == "deterministic":
        workload = Workload(
            workload.arrivals, [1 + job * 1e-6 for job in range(150)]
        )  # no two ends at one moment
    tree = simulate("hold-high", plan, workload)
    assert tree.starts == pytest.approx(simulate(CENTRAL, plan, workload).starts)
    assert sum(waited for node, waited in tree.waited.items() if node != "root") == 0


@pytest.mark.parametrize("law", sorted(SERVICES))
@pytest.mark.parametrize("discipline", sorted(set(DISCIPLINES) - {CENTRAL}))
def test_no_discipline_has_a_smaller_mean_than_the_central_queue(discipline: str, law: str) -> None:
    workload = jobs(SEVEN, 0.85, 4000, service=law)
    central = Figures.of(simulate(CENTRAL, SEVEN, workload))
    other = Figures.of(simulate(discipline, SEVEN, workload, delays=Delays(0.002, 0.004)))
    assert other.in_system.mean >= central.in_system.mean * 0.999_999


def test_knowing_more_helps() -> None:
    workload = jobs(SEVEN, 0.9, 20_000)
    names = (CENTRAL, "shortest queue", "two choices", "round robin")
    means = [Figures.of(simulate(name, SEVEN, workload)).in_system.mean for name in names]
    assert means == sorted(means)
    assert means[-1] > 2 * means[0]


def test_late_news_cost() -> None:
    workload = jobs(SEVEN, 0.9, 2000)
    means = [
        Figures.of(
            simulate("hold-high", SEVEN, workload, delays=Delays(delay, delay))
        ).in_system.mean
        for delay in (0, 0.01, 0.03)
    ]
    assert means == sorted(means)
    assert means[-1] > 1.3 * means[0]


def test_the_backlog_is_where_the_policy_keeps_it() -> None:
    workload = jobs(SEVEN, 0.9, 3000)
    high, low = (Figures.of(simulate(policy, SEVEN, workload)) for policy in ("hold-high", "paper"))
    assert high.backlog_share == pytest.approx({"root": 1, "inner": 0, "leaf": 0})
    assert low.backlog_share == pytest.approx({"root": 0, "inner": 0, "leaf": 1})
    assert low.largest_backlog > high.largest_backlog > 0


@pytest.mark.parametrize("discipline", sorted(DISCIPLINES))
def test_the_same_seed_gives_the_same_run(discipline: str) -> None:
    workload = jobs(SEVEN, 0.9, 500)
    first, again = (
        simulate(discipline, SEVEN, workload, delays=Delays(0.01, 0.02), seed=4) for _ in range(2)
    )
    assert first == again


# ---- laws, plans, figures


@pytest.mark.parametrize(
    ("law", "cv2"),
    [("exponential", 1), ("deterministic", 0), ("hyperexponential", 4), ("answers", 0.6)],
)
def test_laws_have_a_mean_of_one_and_their_variation(law: str, cv2: float) -> None:
    values = draw(SERVICES[law], 100_000, random.Random(2))
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    assert mean == pytest.approx(1, rel=0.02)
    assert variance / mean**2 == pytest.approx(cv2, rel=0.05)


def test_lengths_of_answers_are_those_of_the_table() -> None:
    assert [lengths.quantile(share) for share, _ in lengths.TOKENS] == [
        tokens for _, tokens in lengths.TOKENS
    ]
    assert lengths.quantile(0.525) == (134 + 162) / 2
    assert lengths.mean() == pytest.approx(226, rel=0.01)


def test_a_sample_is_scaled_to_a_mean_of_one() -> None:
    assert normalized([1, 2, 3]) == [0.5, 1, 1.5]


def test_shapes_are_those_of_canopy_up() -> None:
    assert SEVEN.parents == {
        "n1": "root",
        "n2": "n1",
        "n3": "n1",
        "n4": "n2",
        "n5": "n2",
        "n6": "n3",
        "n7": "n3",
    }
    assert [SEVEN.place(node) for node in ("root", "n1", "n3", "n4")] == [
        "root",
        "inner",
        "inner",
        "leaf",
    ]
    assert set(Plan.of(3, slots=2).parents.values()) == {"root"}
    assert Plan.of(3, slots=2).capacity == 6


@pytest.mark.parametrize(
    "parents",
    [{}, {"n1": "n2"}, {"n1": "n2", "n2": "n1"}, {"n1": "n1"}, {"root": "n1", "n1": "root"}],
)
def test_what_is_no_tree_is_refused(parents: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"tree|hang"):
        Plan(parents)


def test_figures_of_known_values() -> None:
    assert Spread.of([float(value) for value in range(1, 101)]) == Spread(50.5, 50, 95, 99)
    assert Spread.of([3.0]) == Spread(3, 3, 3, 3)
    assert confidence([2.0] * 40) == (2, 0)
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])
    with pytest.raises(ValueError, match="too few"):
        confidence([1.0] * 19)


def test_utilisation_counts_what_ran_between_the_warm_up_and_the_last_arrival() -> None:
    workload = Workload([0.0, 1.0, 2.0], [1.5, 1.0, 9.0])
    outcome = simulate(CENTRAL, Plan.of(2), workload)
    assert outcome.utilisation() == pytest.approx((1.5 + 1.0) / 4)


def test_the_busiest_is_the_one_that_holds_jobs() -> None:
    lopsided = Plan({"n1": "root", "n2": "root", "n3": "n2"})
    paper, high = (
        simulate(policy, lopsided, jobs(lopsided, 0.9, 2000)) for policy in ("paper", "hold-high")
    )
    assert (
        paper.busiest() > 0.98 > paper.utilisation()
    )  # n1 gets every second job, and has a third of the slots
    assert high.busiest() == high.utilisation()
